from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openzaya.chat import Tokenizer, train_tokenizer
from openzaya.chat.control import CONTROL

TEXTS = ["12+34=46, x=-5; the word and the word again\n\n", "    indented = 12\n"] * 30


def _kind(character: str) -> str:
    if character in "\r\n":
        return "newline"
    return "blank" if character.isspace() else {"L": "word", "M": "word", "N": "digit"}.get(_major(character), "sign")


def _major(character: str) -> str:
    return unicodedata.category(character)[0]


def test_the_same_texts_give_the_same_files(tmp_path: Path) -> None:
    for name in ("first", "second"):
        train_tokenizer(iter(TEXTS), 300, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == ["chat_template.jinja", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
    for name in files:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_control_tokens_have_fixed_low_ids(tokenizer: Tokenizer) -> None:
    assert [tokenizer.id_of(name) for name in CONTROL] == list(range(len(CONTROL)))
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_ids) == (0, 2, {4})
    assert (tokenizer.think_open_id, tokenizer.think_close_id) == (5, 6)


def test_the_vocabulary_has_at_most_the_asked_size_and_reports_it(tmp_path: Path) -> None:
    assert (
        train_tokenizer(["a few words of very different letters", *TEXTS] * 2, 280, tmp_path / "full").vocab_size == 280
    )
    assert train_tokenizer(["ab ab"], 5000, tmp_path / "few").vocab_size < 300


def test_a_vocabulary_without_room_for_the_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vocab_size is 266.*267"):
        train_tokenizer(TEXTS, 266, tmp_path)


def test_no_merge_is_spent_on_the_spelling_of_control_tokens(tmp_path: Path) -> None:
    trained = train_tokenizer(["<|im_start|>hello<|im_end|><think>"] * 50, 400, tmp_path)
    learned = {trained.decode([index]) for index in range(len(CONTROL) + 256, trained.vocab_size)}
    assert learned == {"he", "hel", "hell", "hello"} or all(set(token) <= set("hello") for token in learned)


@given(st.text(max_size=60))
def test_any_text_comes_back_to_the_byte(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(text, special=False)) == text


@given(st.text(alphabet="0123456789 +-=\n\tabcé,.", max_size=60))
def test_no_token_crosses_kinds_of_characters(tokenizer: Tokenizer, text: str) -> None:
    for index in tokenizer.encode(text):
        try:
            token = tokenizer.token_bytes(index).decode()
        except UnicodeDecodeError:
            continue
        kinds = {_kind(character) for character in token.removeprefix(" ").removesuffix(" ") or token}
        assert len(kinds) == 1, token
        if kinds & {"digit", "newline"}:
            assert len(token) == 1, token
        if token.strip(" ") and token.endswith(" "):
            assert kinds == {"sign"}, token


def test_learned_words_and_operators_take_their_spaces_and_numbers_do_not(tmp_path: Path) -> None:
    trained = train_tokenizer(TEXTS, 400, tmp_path)
    pieces = [trained.decode([index]) for index in trained.encode("the word = 12 word")]
    assert pieces == ["the", " word", " = ", "1", "2", " word"]


def test_transformers_loads_the_folder_with_the_same_tokens(
    tokenizer_folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    for path in tokenizer_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    # Beside a zaya config, transformers would take Gemma's tokenizer class unless the folder names another.
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "zaya"}))
    for folder in (tokenizer_folder, tmp_path):
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        assert isinstance(theirs, transformers.PreTrainedTokenizerFast)
        assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (2, 4, 0)
        for text in ("Compute 1 + 22\n\n  naïve 🙂", "<bos><|im_start|>user\nx<|im_end|>\n<think>\ny\n</think>", ""):
            ids = tokenizer.encode(text)
            assert theirs(text)["input_ids"] == ids
            assert theirs.decode(ids) == tokenizer.decode(ids)
