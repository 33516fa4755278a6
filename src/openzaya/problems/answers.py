"""The light normalisation under which two written answers are the same."""

from __future__ import annotations

import re

_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+")
_SEPARATORS = re.compile(r"[,;\s]+")
_DIGITS = re.compile(r"\d+")


def normalised(answer: str) -> tuple[str, ...]:
    """The words of an answer without case, outer brackets, spacing, commas, plus signs and leading zeros.

    A lone number may group its thousands with commas; otherwise commas separate the items of a list.
    """
    text = answer.strip().replace("\u2212", "-").replace("$", "").casefold().rstrip(".").strip()
    if len(text) > 1 and (text[0], text[-1]) in {("(", ")"), ("[", "]"), ("{", "}")}:
        text = text[1:-1].strip()
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    words = (re.sub(r"^\+(?=\d)", "", word) for word in _SEPARATORS.split(text) if word)
    return tuple("0" if word == "-0" else word for word in (_DIGITS.sub(_without_zeros, word) for word in words))


def same_answer(left: str, right: str) -> bool:
    """Whether two written answers are equal under `normalised`; an empty answer equals nothing."""
    words = normalised(left)
    return bool(words) and words == normalised(right)


def _without_zeros(digits: re.Match[str]) -> str:
    return digits.group().lstrip("0") or "0"
