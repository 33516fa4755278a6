"""A tokenizer that needs no training, so that tests can count and cut by hand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_PIECE = re.compile(r"<\|?/?\w+\|?>|[ ]?[A-Za-z]+|[0-9]|[\x00-\x7f]|[^\x00-\x7f]")
END = "<|im_end|>"


class WordTokenizer:
    """Words with their leading space, single digits, other ASCII characters and whole tags are a token each.

    Characters outside ASCII take a token a byte, so that a stream by tokens meets unfinished characters. Ids below 256
    are bytes; words are numbered as they are met. `decode(encode(text)) == text` for all text.
    """

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._bytes: dict[int, bytes] = {index: bytes([index]) for index in range(256)}
        self.end_id = self._id_of(END)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`."""
        ids: list[int] = []
        for piece in _PIECE.findall(text):
            ids += [self._id_of(piece)] if piece.isascii() else list(piece.encode("utf-8"))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; raises KeyError for an id that was never given out."""
        return b"".join(self._bytes[index] for index in ids).decode("utf-8", "replace")

    def texts(self, ids: Sequence[int]) -> list[str]:
        """The text that each id completes: empty inside a character of several bytes. They join to `decode(ids)`."""
        texts: list[str] = []
        waiting = b""
        for index in ids:
            waiting += self._bytes[index]
            try:
                texts.append(waiting.decode("utf-8"))
                waiting = b""
            except UnicodeDecodeError:
                texts.append("")
        return texts

    def _id_of(self, piece: str) -> int:
        if piece not in self._ids:
            self._ids[piece] = 256 + len(self._ids)
            self._bytes[self._ids[piece]] = piece.encode()
        return self._ids[piece]
