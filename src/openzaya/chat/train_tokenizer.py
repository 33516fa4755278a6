"""Training of a small, digit-friendly tokenizer in the format that `transformers` loads.

A byte-level BPE whose merges stay inside one word, one run of punctuation (each with the single spaces that belong to
it) or one run of blanks. Each digit and each newline is a token of its own, so that the columns of a number and the
lines of a worked solution are always cut at the same places: a small model then learns arithmetic and layout once, not
once for every way a number may be cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from openzaya.chat import control
from openzaya.chat.template import BUILT_IN_TEMPLATE
from openzaya.chat.tokenizer import Tokenizer

_PIECES = "|".join(
    (
        r"\p{N}",  # one digit, nothing with it
        r"[\r\n]",  # one newline
        r" ?[\p{L}\p{M}]+",  # one word, with the single space before it
        r" ?[^\s\p{L}\p{M}\p{N}]+(?: (?=\p{N}))?",  # punctuation with its spaces: "12 + 7" is "1", "2", " + ", "7"
        r" +(?= [\p{L}\p{M}])",  # indentation, leaving the last space to the word
        r" +",
        r"[^\S\r\n ]+",  # tabs and other blanks
    )
)
_CONTROL_TEXT = re.compile("|".join(map(re.escape, control.CONTROL)))
_BYTES = 256


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: str | Path) -> Tokenizer:
    """Train a byte-level BPE on `texts`, write it to `folder` with the chat template, and return it.

    The same texts give the same bytes on disk. `vocab_size` is an upper limit: fewer tokens come out when the texts
    hold no further pair that occurs twice; the result's `vocab_size` says how many. Raises ValueError when
    `vocab_size` has no room for the control tokens and the 256 bytes.
    """
    smallest = len(control.CONTROL) + _BYTES
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size is {vocab_size}; {len(control.CONTROL)} control tokens and {_BYTES} bytes need {smallest}"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    trained = _train(texts, vocab_size)
    _write_json(folder / "tokenizer.json", _with_markup_kept_in_text(json.loads(trained.to_str())))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config())
    _write_json(folder / "special_tokens_map.json", _special_tokens_map())
    (folder / "chat_template.jinja").write_text(BUILT_IN_TEMPLATE, encoding="utf-8")
    return Tokenizer.from_folder(folder)


def _train(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in control.CONTROL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_without_control_tokens(texts), trainer)
    return tokenizer


def _without_control_tokens(texts: Iterable[str]) -> Iterator[str]:
    """The stretches between control tokens, so that no merge is spent on their spelling."""
    for text in texts:
        yield from filter(None, _CONTROL_TEXT.split(text))


def _with_markup_kept_in_text(serialised: dict[str, Any]) -> dict[str, Any]:
    """Mark reasoning and tool tags as not special: `skip_special_tokens` would otherwise hide where reasoning ends."""
    for token in serialised["added_tokens"]:
        token["special"] = token["content"] in control.STRUCTURE
    return serialised


def _special_tokens_map() -> dict[str, str]:
    return {"bos_token": control.BOS, "eos_token": control.TURN_CLOSE, "pad_token": control.PAD}


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **_special_tokens_map(),
        # The chat template writes <bos>, and generation writes the end of the turn.
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "left",
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
