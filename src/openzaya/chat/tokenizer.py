"""Text to token ids and back, over the `tokenizers` library: no torch, no `transformers`."""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import tokenizers

from openzaya.chat import control

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SENTENCEPIECE_SPACE = "\u2581"


class Tokenizer:
    """A vocabulary and what its special ids mean.

    `bos_id` and `pad_id` are None where the folder declares none; `eos_ids` are all ids that its files call an end.
    `special_ids` are the tokens that `decode(skip_special=True)` leaves out; `control_ids` adds the tags of reasoning
    and tools, which only the chat format may write. `think_open_id` and `think_close_id` are None where the vocabulary
    has no such token.
    """

    def __init__(self, backend: tokenizers.Tokenizer, settings: Mapping[str, Any], eos_ids: Iterable[int] = ()) -> None:
        """`settings` is the content of `tokenizer_config.json`. Raises ValueError for a decoder it cannot follow."""
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._byte_level = _is_byte_level(backend)
        self._bytes: dict[int, bytes] = {}
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values(), default=-1) + 1
        """One more than the highest id."""
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        controls = {name: vocabulary[name] for name in control.CONTROL if name in vocabulary}
        controls |= {token.content: index for index, token in added.items() if token.special}
        self.control_tokens: Mapping[str, int] = controls
        """Spelling and id of every token that only the chat format may write."""
        self.control_ids = frozenset(controls.values())
        self._control_start = _start_of_any(controls)
        self.bos_token = token_text(settings.get("bos_token"))
        self.eos_token = token_text(settings.get("eos_token"))
        self.pad_token = token_text(settings.get("pad_token"))
        self.bos_id = self.id_of(self.bos_token)
        self.pad_id = self.id_of(self.pad_token)
        declared_end = self.id_of(self.eos_token)
        self.eos_ids = frozenset(eos_ids) | ({declared_end} if declared_end is not None else frozenset())
        self.think_open_id = self.id_of(control.THINK_OPEN)
        self.think_close_id = self.id_of(control.THINK_CLOSE)

    @classmethod
    def from_folder(cls, path: str | Path) -> Tokenizer:
        """Load `tokenizer.json`, `tokenizer_config.json` and the end ids of `generation_config.json` or `config.json`.

        Raises ValueError naming the missing or unreadable file and the remedy.
        """
        folder = Path(path)
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ValueError(
                f"{file} is missing; give a model folder that holds tokenizer.json "
                "(save it with transformers' tokenizer.save_pretrained)"
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception for whatever is wrong in the file
            raise ValueError(f"{file} cannot be read ({error}); download or save it again") from error
        if not (folder / "tokenizer_config.json").is_file():
            raise ValueError(
                f"{folder / 'tokenizer_config.json'} is missing; it names the special tokens, so copy it from the "
                "model's repository beside tokenizer.json"
            )
        return cls(backend, read_json(folder / "tokenizer_config.json"), _configured_end_ids(folder))

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides which ids a text becomes."""
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()

    def id_of(self, token: str | None) -> int | None:
        """The id of a whole token by its spelling in the vocabulary, or None."""
        return None if token is None else self._backend.token_to_id(token)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of `text`; never adds a beginning or an end.

        With `special`, control tokens spelled in the text become their ids, as chat templates need. Without it no
        control token comes out whatever the text holds, so that a user who types `<|im_end|>` ends no turn. Raises
        ValueError for lone surrogates, which are not text.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the text holds a lone surrogate at character {error.start}; replace it before encoding"
            ) from error
        return self._encode(text) if special else self._encode_as_plain_text(text)

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        if skip_special:
            ids = (index for index in ids if index not in self.special_ids)
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes that a token stands for; none for an id above the vocabulary (a padded embedding row)."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._spell(self._backend.id_to_token(token_id))
        return known

    def _encode(self, text: str) -> list[int]:
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def _encode_as_plain_text(self, text: str) -> list[int]:
        # A control token's spelling, cut after its first character, is no longer one.
        cuts = [match.start() + 1 for match in self._control_start.finditer(text)]
        ids = [index for piece in _cut(text, cuts) for index in self._encode(piece)]
        if not self.control_ids.isdisjoint(ids):
            # A normaliser can write the spelling from other characters; one at a time they cannot make it up.
            ids = [index for character in text for index in self._encode(character)]
        return ids

    def _spell(self, token: str | None) -> bytes:
        if token is None:
            return b""
        if self._byte_level:
            values = [_BYTE_OF_CHARACTER.get(character) for character in token]
            known = [value for value in values if value is not None]
            # An added token may hold characters outside the byte alphabet; it is spelled as it reads.
            return bytes(known) if len(known) == len(token) else token.encode("utf-8")
        byte = _BYTE_FALLBACK.fullmatch(token)
        if byte:
            return bytes([int(byte[1], 16)])
        return token.replace(_SENTENCEPIECE_SPACE, " ").encode("utf-8")


class IncrementalDecoder:
    """Token ids in, pieces of text out, never half of a UTF-8 sequence.

    The pieces, with what `flush` gives at the end, are `tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is still missing bytes."""
        if token_id in self._skipped:
            return ""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """What was left unfinished, as U+FFFD, or nothing; the decoder is as new afterwards."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or {} where there is no file. Raises ValueError when it is not a JSON object."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); download or save it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}, not an object; download or save it again")
    return value


def _configured_end_ids(folder: Path) -> list[int]:
    """End ids by `generation_config.json`, else by `config.json`."""
    for name in ("generation_config.json", "config.json"):
        stated = read_json(folder / name).get("eos_token_id")
        if isinstance(stated, int):
            return [stated]
        if isinstance(stated, list) and stated:
            return [int(index) for index in stated]
    return []


def token_text(declared: Any) -> str | None:
    """A token as `tokenizer_config.json` declares it: its text, or an object that holds the text."""
    if isinstance(declared, Mapping):
        declared = declared.get("content")
    return declared if isinstance(declared, str) else None


def _is_byte_level(backend: tokenizers.Tokenizer) -> bool:
    """True for byte-level BPE, False for SentencePiece with byte fallback. Raises ValueError for anything else."""
    decoder: dict[str, Any] = json.loads(backend.decoder.__getstate__()) if backend.decoder else {"type": "none"}
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return True
    spaces = [step for step in steps if step["type"] == "Replace"]
    as_expected = all((step["pattern"], step["content"]) == ({"String": _SENTENCEPIECE_SPACE}, " ") for step in spaces)
    if set(kinds) <= {"Replace", "ByteFallback", "Fuse"} and "ByteFallback" in kinds and as_expected:
        return False
    raise ValueError(
        f"the tokenizer decodes by {', '.join(kinds)}; only byte-level BPE and SentencePiece with byte fallback "
        "(as Gemma's) are supported"
    )


def _start_of_any(spellings: Iterable[str]) -> re.Pattern[str]:
    """Matches, without consuming, every place where one of `spellings` starts, overlapping ones included."""
    alternatives = "|".join(map(re.escape, sorted(spellings)))
    return re.compile(f"(?={alternatives})" if alternatives else r"(?!)")


def _cut(text: str, places: Iterable[int]) -> list[str]:
    bounds = [0, *places, len(text)]
    return [text[start:end] for start, end in pairwise(bounds) if start < end]


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 stands for itself, the others follow from U+0100 in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_alphabet()
