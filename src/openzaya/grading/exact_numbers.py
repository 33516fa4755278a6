"""Read a written number exactly, as a fraction, and never compute what the author of an answer could blow up."""

from __future__ import annotations

import re
from fractions import Fraction

_LONGEST = 1000
_LARGEST_EXPONENT = 1000
_LARGEST_BITS = 4096

_DECIMAL = r"(?:\d+(?:\.\d*)?|\.\d+)"
_PLAIN = re.compile(rf"{_DECIMAL}\Z")
_GROUPED_BY_SPACES = re.compile(r"[1-9]\d{0,2}(?: \d{3})+(?:\.\d+)?\Z")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\overline\s*\{?(\d+)\}?\Z")
_SCIENTIFIC = re.compile(rf"({_DECIMAL})\s*(?:[eE]|\*\s*10\s*\^)\s*\{{?\s*([+-]?\d{{1,5}})\s*\}}?\Z")
_POWER = re.compile(
    r"(\(\s*[+-]?\d+(?:/\d+)?\s*\)|\d+(?:\.\d+)?)\s*\^\s*(\{\s*[+-]?\d{1,5}\s*\}|\(\s*[+-]?\d{1,5}\s*\)|-?\d{1,5})\Z"
)
_MIXED = re.compile(r"(\d+)(?:\s+(\d+)\s*/\s*(\d+)|\s*(\\frac.*))\Z", re.DOTALL)


def parse_number(text: str) -> Fraction | None:
    r"""The exact value of an integer, decimal, fraction (`1/2`, `\frac{1}{2}`), mixed or scientific number or power.

    None for anything else, and for values too large to be an answer: powers are computed only where the result stays
    below 4,096 bits, and numerals above 1,000 characters are not read.
    """
    text = text.strip()
    if not text or len(text) > _LONGEST:
        return None
    if text[0] in "+-":
        rest = text[1:].lstrip()
        value = None if rest[:1] in ("+", "-") else _unsigned(rest)
        return None if value is None else (-value if text[0] == "-" else value)
    return _unsigned(text)


def _unsigned(text: str) -> Fraction | None:
    if _PLAIN.match(text):
        return Fraction(text.rstrip(".")) if text.isascii() else None
    if _GROUPED_BY_SPACES.match(text):
        return Fraction(text.replace(" ", ""))
    readings = (form(text) for form in (_scaled, _fraction, _mixed, _parenthesised))
    return next((value for value in readings if value is not None), None)


def _scaled(text: str) -> Fraction | None:
    """Repeating decimals, scientific notation and powers."""
    repeating = _REPEATING.match(text)
    if repeating:
        whole, fixed, period = repeating.groups()
        tail = Fraction(int(period), 10 ** len(fixed) * (10 ** len(period) - 1))
        return Fraction(f"{whole or 0}.{fixed or 0}") + tail
    scientific = _SCIENTIFIC.match(text)
    if scientific:
        return _times_power(Fraction(scientific.group(1).rstrip(".")), Fraction(10), int(scientific.group(2)))
    power = _POWER.match(text)
    if power:
        base = parse_number(power.group(1).strip("() "))
        return None if base is None else _times_power(Fraction(1), base, int(power.group(2).strip("{()} ")))
    return None


def _times_power(factor: Fraction, base: Fraction, exponent: int) -> Fraction | None:
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) > _LARGEST_EXPONENT or bits * abs(exponent) > _LARGEST_BITS or (base == 0 and exponent <= 0):
        return None
    return factor * base**exponent


def _fraction(text: str) -> Fraction | None:
    if text.startswith("\\frac"):
        rest = text[5:]
        above, rest = fraction_part(rest)
        below, rest = fraction_part(rest)
        return None if rest.strip() else _quotient(above, below)
    above, slash, below = text.partition("/")
    if not slash or "/" in below.strip("()") or not _is_operand(above) or not _is_operand(below):
        return None
    return _quotient(above, below)


def _is_operand(text: str) -> bool:
    """Whether this side of a slash is one number: `1 1/2` is mixed, `2*3/4` a product."""
    text = text.strip()
    return bool(_PLAIN.match(text.lstrip("+-"))) or (text.startswith("(") and text.endswith(")"))


def fraction_part(text: str) -> tuple[str, str]:
    r"""The next argument of `\frac` and what follows it: a balanced group, or one character as in `\frac12`."""
    text = text.lstrip()
    if not text.startswith("{"):
        return text[:1], text[1:]
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[1:index], text[index + 1 :]
    return "", text


def _quotient(above: str, below: str) -> Fraction | None:
    numerator, denominator = parse_number(above), parse_number(below)
    if numerator is None or not denominator:
        return None
    return numerator / denominator


def _mixed(text: str) -> Fraction | None:
    mixed = _MIXED.match(text)
    if not mixed:
        return None
    whole, above, below, latex = mixed.groups()
    part = _fraction(latex) if latex else _quotient(above, below)
    # Only a proper fraction reads as "and"; `2 3/2` or `2\frac{5}{3}` is more likely a product.
    return Fraction(whole) + part if part is not None and 0 < part < 1 else None


def _parenthesised(text: str) -> Fraction | None:
    pairs = {"(": ")", "{": "}"}
    if len(text) < 3 or pairs.get(text[0]) != text[-1]:
        return None
    inside = text[1:-1]
    return None if any(character in inside for character in "(){}") else parse_number(inside)
