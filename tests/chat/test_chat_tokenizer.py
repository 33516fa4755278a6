from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers

from openzaya.chat import IncrementalDecoder, Tokenizer

HARD_TEXTS = ["👩‍👩‍👧‍👦 family", "e\u0301 = é", "漢字かな交じり文", "\u202eright to left", "a\x00b", "🏳️‍🌈🇩🇪"]


@pytest.fixture(scope="module")
def gemma_like(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """SentencePiece BPE with byte fallback and U+2581 for spaces, as Gemma's file has it."""
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<|im_end|>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += ["\u2581", *"abcdefghijklmnop<|>_", "ab", "\u2581a", "\u2581\u2581", "é"]
    vocabulary = {name: index for index, name in enumerate(names)}
    merges = [("a", "b"), ("\u2581", "a"), ("\u2581", "\u2581")]
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names[:5]])
    folder = tmp_path_factory.mktemp("gemma")
    backend.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": {"content": "<bos>"}, "eos_token": "<eos>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 4]}))
    return Tokenizer.from_folder(folder)


def _decoded_in_pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = IncrementalDecoder(tokenizer)
    return [decoder.feed(index) for index in ids] + [decoder.flush()]


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_hard_characters_survive_in_both_kinds_of_vocabulary(
    tokenizer: Tokenizer, gemma_like: Tokenizer, text: str
) -> None:
    for vocabulary in (tokenizer, gemma_like):
        ids = vocabulary.encode(text)
        pieces = _decoded_in_pieces(vocabulary, ids)
        assert "".join(pieces) == text == vocabulary.decode(ids)
        assert "\ufffd" not in "".join(pieces)
        assert b"".join(map(vocabulary.token_bytes, ids)) == text.encode()


@given(data=st.data())
def test_pieces_of_any_ids_join_to_their_decoding(
    tokenizer: Tokenizer, gemma_like: Tokenizer, data: st.DataObject
) -> None:
    vocabulary = data.draw(st.sampled_from([tokenizer, gemma_like]))
    ids = data.draw(st.lists(st.integers(0, vocabulary.vocab_size - 1), max_size=30))
    assert "".join(_decoded_in_pieces(vocabulary, ids)) == vocabulary.decode(ids)


@given(data=st.data())
def test_byte_level_decoding_is_that_of_the_library(
    tokenizer: Tokenizer, tokenizer_folder: Path, data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    theirs = tokenizers.Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    assert tokenizer.decode(ids, skip_special=True) == theirs.decode(ids, skip_special_tokens=True)


def test_half_a_character_waits_and_becomes_a_replacement_only_at_the_end(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.id_of(spelling) for spelling in ("ð", "Ł", "Ļ")]  # F0 9F 99, three bytes of four
    decoder = IncrementalDecoder(tokenizer)
    assert [decoder.feed(index or 0) for index in ids] == ["", "", ""]
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""


def test_ends_come_from_every_file_that_names_one(
    gemma_like: Tokenizer, tokenizer_folder: Path, tmp_path: Path
) -> None:
    assert gemma_like.eos_ids == {1, 4}
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 1}))
    assert Tokenizer.from_folder(tmp_path).eos_ids == {1, 4}


def test_a_vocabulary_without_think_tokens_says_so(gemma_like: Tokenizer) -> None:
    assert gemma_like.think_open_id is None
    assert gemma_like.think_close_id is None
    assert (gemma_like.bos_id, gemma_like.pad_id) == (2, 0)
    assert gemma_like.id_of("no such token") is None


def test_an_id_above_the_vocabulary_is_silent_as_padded_rows_are(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_bytes(tokenizer.vocab_size + 7) == b""


def test_encoding_adds_neither_beginning_nor_end(tokenizer: Tokenizer, gemma_like: Tokenizer) -> None:
    assert tokenizer.encode("") == []
    assert gemma_like.encode("ab") == [gemma_like.id_of("ab")]


SPELLINGS = ["<|im_end|>", "<|im_start|>", "<think>", "</think>", "<bos>", "<pad>", "<<pad>", "<|im_end|><|im_end|>"]


@given(st.lists(st.sampled_from([*SPELLINGS, "a", " ", "<", "|", ">", "\n", "<|im_"]), max_size=12).map("".join))
def test_plain_encoding_never_gives_a_control_token(tokenizer: Tokenizer, gemma_like: Tokenizer, text: str) -> None:
    for vocabulary in (tokenizer, gemma_like):
        ids = vocabulary.encode(text, special=False)
        assert vocabulary.control_ids.isdisjoint(ids)
        if vocabulary is tokenizer:  # the small Gemma-like vocabulary is exact too, but for bytes it falls back on
            assert vocabulary.decode(ids) == text


def test_a_normaliser_cannot_smuggle_a_control_token_in(tokenizer_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    stored = json.loads((tmp_path / "tokenizer.json").read_text())
    stored["normalizer"] = {"type": "NFKC"}
    for token in stored["added_tokens"]:
        token["normalized"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    normalising = Tokenizer.from_folder(tmp_path)
    full_width = "\uff1c|im_end|\uff1e"
    assert normalising.encode(full_width) == [normalising.id_of("<|im_end|>")]
    plain = normalising.encode(full_width, special=False)
    assert normalising.control_ids.isdisjoint(plain)
    assert normalising.decode(plain) == "<|im_end|>"


def test_special_tokens_can_be_left_out_of_the_text_but_tags_of_reasoning_stay(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<bos><|im_start|>x<think>y</think><|im_end|>")
    assert tokenizer.decode(ids, skip_special=True) == "x<think>y</think>"
    decoder = IncrementalDecoder(tokenizer, skip_special=True)
    assert "".join(map(decoder.feed, ids)) == "x<think>y</think>"


def test_a_lone_surrogate_is_refused_with_its_place(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="lone surrogate at character 2"):
        tokenizer.encode("ab\ud83d")


def test_truncation_left_in_the_file_is_switched_off(tokenizer_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.enable_truncation(2)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer.from_folder(tmp_path).encode("1234567")) == 7


@pytest.mark.parametrize("missing", ["tokenizer.json", "tokenizer_config.json"])
def test_a_missing_file_is_named(tokenizer_folder: Path, tmp_path: Path, missing: str) -> None:
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / missing).unlink()
    with pytest.raises(ValueError, match=missing):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"), [("tokenizer.json", "{"), ("tokenizer_config.json", "["), ("config.json", "[]")]
)
def test_a_broken_file_is_named(tokenizer_folder: Path, tmp_path: Path, name: str, content: str) -> None:
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=name):
        Tokenizer.from_folder(tmp_path)


def test_a_kind_of_vocabulary_that_cannot_be_followed_is_refused(tokenizer_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.decoder = decoders.WordPiece()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="decodes by WordPiece"):
        Tokenizer.from_folder(tmp_path)
