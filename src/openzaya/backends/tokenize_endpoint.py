"""The tokenize and detokenize endpoints that vLLM, SGLang and llama.cpp offer, each with fields of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PROBE = "2 + 2 = 4, naïve\n"
"""Text whose round trip shows that an endpoint works: digits, a character of two bytes, a line break."""


@dataclass(frozen=True, slots=True)
class TokenizeEndpoint:
    """How one server's endpoints are asked. `decodes` is False until a detokenize endpoint gave the probe back."""

    encode_path: str
    decode_path: str
    text_field: str
    under_api: bool = False
    """The paths lie under `/v1`."""
    decodes: bool = False

    def encode_body(self, text: str, model: str | None) -> dict[str, Any]:
        """The request for the ids of `text` alone: no beginning- or end-of-text token is to be added."""
        body: dict[str, Any] = {self.text_field: text, "add_special_tokens": False, "add_special": False}
        return body if model is None else {"model": model, **body}

    def decode_body(self, ids: Sequence[int], model: str | None) -> dict[str, Any]:
        """The request for the text of `ids`, special tokens spelled out."""
        body: dict[str, Any] = {"tokens": list(ids), "skip_special_tokens": False}
        return body if model is None else {"model": model, **body}


CANDIDATES = (
    TokenizeEndpoint("/tokenize", "/detokenize", "prompt"),  # vLLM, SGLang
    TokenizeEndpoint("/tokenize", "/detokenize", "content"),  # llama.cpp
    TokenizeEndpoint("/tokenize", "/detokenize", "prompt", under_api=True),  # SGLang
)


def read_ids(answer: Any) -> list[int] | None:
    """The ids in a tokenize answer, or None where it has another shape.

    llama.cpp answers a body without its own `content` field with an empty list, so no ids means another shape too.
    """
    ids = answer.get("tokens") if isinstance(answer, Mapping) else None
    if not isinstance(ids, list) or not ids or not all(type(index) is int for index in ids):
        return None
    return ids


def read_text(answer: Any) -> str | None:
    """The text in a detokenize answer: vLLM calls it `prompt`, SGLang `text`, llama.cpp `content`."""
    if not isinstance(answer, Mapping):
        return None
    return next((answer[key] for key in ("prompt", "text", "content") if isinstance(answer.get(key), str)), None)


def gives_back(decoded: str | None) -> bool:
    """Whether `decoded` is the probe; SentencePiece vocabularies may put a space before a text's first word."""
    return decoded is not None and decoded.removeprefix(" ") == PROBE
