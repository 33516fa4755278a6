r"""Read an answer into one canonical key, and into the looser keys that it may also stand for.

The key says exactly what was written, however it was spelled: `\dfrac{1}{2}`, `0.50` and ` 1/2.` share one. An alias
is what the answer means once something customary is left unsaid: a unit, a percent sign, the brackets of a list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from openzaya.grading.exact_numbers import fraction_part, parse_number
from openzaya.grading.extraction import boxes

_LONGEST = 4000
_LONGEST_WITH_UNIT = 200
_DEEPEST = 12


@dataclass(frozen=True, slots=True)
class Reading:
    """What an answer says (`key`), and what it may also stand for (`aliases`)."""

    key: str
    aliases: frozenset[str] = frozenset()


def normalise(answer: str) -> str:
    """The key under which equal answers are counted together; normalising a key gives the key itself."""
    return read(answer).key


def read(answer: str) -> Reading:
    """Read an answer; one above 4,000 characters is compared as text only, so this stays fast on anything."""
    return Reading(" ".join(answer.split())) if len(answer) > _LONGEST else _read(answer)


@lru_cache(maxsize=4096)
def _read(answer: str) -> Reading:
    reading = _structure(_clean(answer), 0)
    for _ in range(4):  # a rewriting may uncover another (a period behind a unit, a group inside a box)
        again = _structure(_clean(reading.key), 0)
        if again.key == reading.key:
            break
        reading = Reading(again.key, (reading.aliases | again.aliases) - {again.key})
    return reading


# --- spelling -------------------------------------------------------------------------------------------------------

_CHARACTERS = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "﹣": "-", "－": "-", "＋": "+", "＝": "=", "，": ",", "（": "(", "）": ")",
        "×": "*", "·": "*", "⋅": "*", "∙": "*", "÷": "/", "∕": "/", "⁄": "/", "π": r"\pi ", "∞": r"\infty ",
        "≤": "<=", "≥": ">=", "≠": "!=", "∪": r"\cup ", "∈": r"\in ", "√": r"\sqrt ", "∅": r"\emptyset ", "±": r"\pm ",
        "²": "^2", "³": "^3", "½": " 1/2", "⅓": " 1/3", "⅔": " 2/3", "¼": " 1/4", "¾": " 3/4", "⅕": " 1/5", "⅛": " 1/8",
        "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u200b": "", "\ufeff": "", "’": "'", "‘": "'", "“": '"', "”": '"',
        "€": "", "£": "", "¥": "", "％": "%", "º": "°",
    }
)  # fmt: skip

_SPELLINGS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<=\d)(?:\\[,!; :]|~|\{,\}|\{\\,\})(?=\d{3}(?!\d))", ""),
        (r"\\(?:[,;:!> ]|quad\b|qquad\b)|~", " "),
        (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits)(?![A-Za-z])\s*\.?(?=[^.\d]|$)", ""),
        (r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|operatorname)\*?\s*\{([^{}]*)\}", r" \1 "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])|\s*\bdegrees?\b(?!\s+[A-Z])", "°"),
        (r"\\%|\s*\bpercent\b", "%"),
        (r"\\\$|\$", ""),
        (r"\\(?:leq|le|leqslant)(?![A-Za-z])", "<="),
        (r"\\(?:geq|ge|geqslant)(?![A-Za-z])", ">="),
        (r"\\(?:neq|ne)(?![A-Za-z])", "!="),
        (r"\\(?:cdot|times|ast)(?![A-Za-z])", "*"),
        (r"\\div(?![A-Za-z])", "/"),
        (r"\*\*", "^"),
        (r"\\\{|\\lbrace(?![A-Za-z])", "⦃"),
        (r"\\\}|\\rbrace(?![A-Za-z])", "⦄"),
        (r"\\(?:emptyset|varnothing)(?![A-Za-z])", "⦃⦄"),
    )
]
_DELIMITERS = (("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`"), ('"', '"'))
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!,?\d)")


def _clean(answer: str) -> str:
    text = answer.translate(_CHARACTERS).strip()
    for _ in range(_DEEPEST):
        stripped = _unwrap(text)
        if stripped == text:
            break
        text = stripped
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    text = " ".join(text.split())
    # Inside brackets a comma separates: (1,234) is a pair.
    if not any(bracket in text for bracket in "([⦃") and not text.startswith("{"):
        text = _THOUSANDS.sub(lambda group: group.group().replace(",", ""), text)
    return text.strip().rstrip(".,;: ").strip()


def _unwrap(text: str) -> str:
    text = text.strip().rstrip(".,;: ") if not text.endswith("\\,") else text[:-2]
    for opening, closing in _DELIMITERS:
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing):
            text = text[len(opening) : -len(closing)].strip()
    if text.startswith(("\\boxed", "\\fbox")) and text.endswith("}"):
        content = boxes(text)
        if len(content) == 1 and len(content[0]) + 12 > len(text):
            return content[0]
    if text.startswith("$") and text.endswith("$") and len(text) > 1:
        return text.strip("$").strip()
    return text


# --- structure ------------------------------------------------------------------------------------------------------

_OPENING, _CLOSING = "([{⦃", ")]}⦄"
_VARIABLE = r"\\?[A-Za-z]{1,20}(?:_(?:\w|\{\w{1,8}\}))?(?:\(\w\))?"
_TUPLE_OF_VARIABLES = r"\(\s*[A-Za-z](?:\s*,\s*[A-Za-z])+\s*\)"
_LEFT_SIDE = re.compile(rf"({_VARIABLE}|{_TUPLE_OF_VARIABLES}|[\d+\-*/(). ]+)\s*(?:=|\\in(?![A-Za-z]))\s*")
_WORD_SEPARATOR = re.compile(r",?\s+(?:and|or)\s+")


def _structure(text: str, depth: int) -> Reading:
    if depth > _DEEPEST:
        return Reading(_expression(text))
    name, value = _without_left_side(text)
    if name is not None:
        reading = _structure(value, depth + 1)
        if _is_value(reading.key):
            return reading
        equation = _expression(text)
        return Reading(equation, frozenset({reading.key}) - {equation})
    if "\\cup" in text:
        parts = _split(text, "\\cup")
        if parts and len(parts) > 1:
            return Reading(" \\cup ".join(_sorted_keys(parts, depth)))
    return _bracketed(text, depth) or _bare_list(text, depth) or _scalar(text)


def _without_left_side(text: str) -> tuple[str | None, str]:
    match = _LEFT_SIDE.match(text)
    if not match or match.end() == len(text) or "=" in text[match.end() :] or not any(map(str.isalnum, match.group(1))):
        return None, text
    if parts := _split(text, ","):
        in_items = [part for part in parts if _LEFT_SIDE.match(part)]
        if len(in_items) > 1:
            return None, text
    return match.group(1).strip(), text[match.end() :]


def _is_value(key: str) -> bool:
    """Whether a right side is an answer by itself; `2x+1` is one only together with its left side."""
    return parse_number(key) is not None or key[:1] in ("(", "[", "\\") or ", " in key or key.endswith(("%", "°"))


def _bracketed(text: str, depth: int) -> Reading | None:
    if len(text) < 2 or text[0] not in _OPENING or _closing(text) != len(text) - 1:
        return None
    opening, closing, inside = text[0], text[-1], text[1:-1]
    if opening == "⦃" and not inside.strip():
        return Reading("\\{\\}")
    parts = _split(inside, ",")
    if not parts or not all(part.strip() for part in parts):
        return None
    if len(parts) == 1 and opening in "({" and closing in ")}":
        return _structure(inside.strip(), depth + 1)
    if opening == "⦃" or opening == "{":
        return Reading(_set(_sorted_keys(parts, depth)))
    return Reading(f"{opening}{', '.join(_keys(parts, depth))}{closing}")


def _bare_list(text: str, depth: int) -> Reading | None:
    """Items without brackets: a list in order, or a set where `and`, `or` or one repeated variable says so."""
    worded = _WORD_SEPARATOR.search(text) is not None
    parts = _split(_WORD_SEPARATOR.sub(" , ", text), ",")
    if not parts or len(parts) < 2:
        return None
    parts = [part.strip() for part in parts if part.strip()]
    if len(parts) < 2:
        return None
    names = [_without_left_side(part)[0] for part in parts]
    keys = _keys(parts, depth)
    one_variable = names[0] is not None and set(names) <= {names[0], None}
    if worded or one_variable:
        return Reading(_set(sorted(set(keys))))
    ordered = ", ".join(keys)
    return Reading(ordered, frozenset({f"({ordered})", f"[{ordered}]", _set(sorted(set(keys)))}))


def _set(keys: Iterable[str]) -> str:
    return "\\{" + ", ".join(keys) + "\\}"


def _keys(parts: Iterable[str], depth: int) -> list[str]:
    return [_structure(part.strip(), depth + 1).key for part in parts]


def _sorted_keys(parts: Iterable[str], depth: int) -> list[str]:
    return sorted(set(_keys(parts, depth)))


def _closing(text: str) -> int:
    """Where the bracket that opens the text closes, kinds not told apart since `(1, 2]` is an interval; -1 if never."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth == 0:
            return index
    return -1


def _split(text: str, separator: str) -> list[str] | None:
    """The parts between separators outside all brackets; None where brackets do not balance."""
    parts, start, depth, index = [], 0, 0, 0
    while index < len(text):
        character = text[index]
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth < 0:
            return None
        if depth == 0 and text.startswith(separator, index):
            parts.append(text[start:index])
            start = index = index + len(separator)
            continue
        index += 1
    return None if depth else [*parts, text[start:]]


# --- one value ------------------------------------------------------------------------------------------------------

_SCALE_WORDS = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_ATTACHED_UNITS = (
    "mm|cm|dm|km|kg|mg|lbs?|oz|ml|mL|dL|ms|min|mins|hrs?|km/h|mph|m/s|kHz|MHz|Hz|kW|kWh|GB|MB|KB|"
    r"[cm]?m\^\{?[23]\}?"
)
_UNIT_WORD = r"(?:[A-Za-z]{2,}|[mshgLl])(?:\^\{?-?\d\}?)?"
_WITH_UNIT = re.compile(
    rf"(?P<number>.*[\d}}.)])(?:\s*(?P<attached>{_ATTACHED_UNITS})|\s+(?P<unit>{_UNIT_WORD}(?:(?:\s|\s?/\s?){_UNIT_WORD}){{0,2}}))\Z"
)
_NO_UNIT = re.compile(
    r"\b(?:pi|sqrt|mod|factorial|log|ln|sin|cos|tan|exp|to|by|out|of|squared|cubed|choose|over|plus|minus|times|divided|"
    r"point|and|or|if|when|for|not|infinity|half|quarter|am|pm|more|less|per|base|remainder|is|are|at|in)\b",
    re.IGNORECASE,
)


def _scalar(text: str) -> Reading:
    number = parse_number(text)
    if number is not None:
        return Reading(_written(number))
    if text.endswith(("%", "°")):
        number = parse_number(text[:-1])
        if number is not None:
            return _with_sign(number, text[-1])
    unit = _WITH_UNIT.match(text) if len(text) <= _LONGEST_WITH_UNIT else None
    if unit:
        reading = _with_unit(unit)
        if reading:
            return reading
    return Reading(_words_or_expression(text))


def _with_sign(number: Fraction, sign: str) -> Reading:
    """A percentage stands for its hundredth and, where the question asks for percent, for the number alone."""
    aliases = {_written(number)} | ({_written(number / 100)} if sign == "%" else set())
    return Reading(_written(number) + sign, frozenset(aliases))


def _with_unit(match: re.Match[str]) -> Reading | None:
    words = (match["attached"] or match["unit"]).split()
    number = parse_number(match["number"])
    if number is None or _NO_UNIT.search(" ".join(words)):
        return None
    if words[0].lower() in _SCALE_WORDS:
        number *= _SCALE_WORDS[words.pop(0).lower()]
    if not words:
        return Reading(_written(number))
    unit = " ".join(word if len(word) < 3 else word.casefold() for word in words)
    return Reading(f"{_written(number)} {unit}", frozenset({_written(number)}))


def _written(number: Fraction) -> str:
    return str(number)


_ONLY_LETTERS = re.compile(r"[A-Za-z][A-Za-z' .-]*\Z")
_CLOCK = re.compile(r"(\d)\s*([ap])\.?m\.?\Z", re.IGNORECASE)
_MATHEMATICAL = re.compile(r"[\\^=+*/_(){}\[\]<>|]|\b(?:sin|cos|tan|log|exp|sqrt)\b")
_WORD = re.compile(r"[^\W\d_]{3,}")


def _words_or_expression(text: str) -> str:
    if len(text) == 1:
        return text.upper()  # an option letter; the case of a lone variable is not worth telling apart
    if _ONLY_LETTERS.match(text) or (_WORD.search(text) and not _MATHEMATICAL.search(text)):
        return " ".join(text.casefold().split())
    clock = _CLOCK.search(text)
    if clock and ":" in text:
        return f"{text[: clock.start()].replace(' ', '')}{clock[1]} {clock[2].lower()}m"
    return _expression(text)


_WORD_PI = re.compile(r"(?<![A-Za-z\\])pi(?![A-Za-z])")
_WORD_SQRT = re.compile(r"(?<![A-Za-z\\])sqrt\s*\(([^()]*)\)")
_SHORT_SQRT = re.compile(r"\\sqrt\s*(\w)")
_SHORT_POWER = re.compile(r"\^\s*\{\s*(\w)\s*\}")
_IMPLIED_PRODUCT = re.compile(r"(?<=[\d)}])\*(?=[A-Za-z\\(])")


def _expression(text: str) -> str:
    """One spelling for a formula; it is neither computed nor rearranged."""
    text = _WORD_PI.sub(r"\\pi ", text)
    text = _WORD_SQRT.sub(r"\\sqrt{\1}", text)
    text = _SHORT_SQRT.sub(r"\\sqrt{\1}", text)
    text = _SHORT_POWER.sub(r"^\1", _braced_fractions(text))
    text = "".join(text.split()).replace("⦃", "\\{").replace("⦄", "\\}").removeprefix("+")
    return _IMPLIED_PRODUCT.sub("", text)


def _braced_fractions(text: str) -> str:
    r"""Write `\frac12` as `\frac{1}{2}` everywhere."""
    pieces = text.split("\\frac")
    written = pieces[0]
    for piece in pieces[1:]:
        above, rest = fraction_part(piece)
        below, rest = fraction_part(rest)
        if not above or not below:
            written += "\\frac" + piece
            continue
        written += f"\\frac{{{above}}}{{{below}}}{rest}"
    return written
