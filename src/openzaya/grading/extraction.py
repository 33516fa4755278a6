"""Find the answer that a reply states; never make one up. Every function here takes time linear in the text."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from typing import Literal, cast, get_args

Task = Literal["auto", "math", "choice", "code", "general"]

_LONGEST_STATEMENT = 200


def extract_answer(text: str, task: str = "auto") -> str | None:
    """The answer that the text ends on, or None where it states none.

    `math` reads the last complete box, else the last answer tags, else the last "the answer is ...", else a number
    that is clearly the conclusion; `choice` an option letter A to J; `code` the last fenced block, whole; `general` a
    box, tags or a statement; `auto` all of them but bare letters. Raises ValueError for another task.
    """
    if task not in get_args(Task):
        raise ValueError(f"task must be one of {', '.join(get_args(Task))}, not {task!r}")
    for source in _SOURCES[cast(Task, task)]:
        answer = source(text)
        if answer is not None:
            return answer
    return None


# --- boxes and tags -------------------------------------------------------------------------------------------------

_BOX_TOKENS = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r" {0,4}(-?\d[\d.,/]{0,40}|-?[A-Za-z](?![A-Za-z]))")


def boxes(text: str) -> list[str]:
    r"""The contents of all complete, outermost `\boxed{...}` in order, also those without braces as in `\boxed 5`."""
    found: list[tuple[int, str]] = []
    opened: list[int | None] = []  # for each open brace: where the content of its box starts, or None
    pending: int | None = None  # the end of a box command whose brace may come next
    for token in _BOX_TOKENS.finditer(text):
        symbol = token.group()
        opens_box = pending is not None and not text[pending : token.start()].strip()
        if pending is not None and not opens_box:
            _add_bare_box(found, text, pending)
        if symbol == "{":
            opened.append(token.end() if opens_box else None)
        elif symbol == "}" and opened:
            start = opened.pop()
            if start is not None:
                while found and found[-1][0] >= start:
                    found.pop()  # a box inside this one
                found.append((start, text[start : token.start()].strip()))
        pending = token.end() if symbol in ("\\boxed", "\\fbox") else None
    if pending is not None:
        _add_bare_box(found, text, pending)
    return [content for _, content in found if content]


def _add_bare_box(found: list[tuple[int, str]], text: str, end: int) -> None:
    bare = _BARE_BOX.match(text, end)
    if bare:
        found.append((end, bare.group(1).rstrip(".,/")))


def _boxed(text: str) -> str | None:
    return next(reversed(boxes(text)), None)


_OPENING_TAG = re.compile(r"<answer>", re.IGNORECASE)
_CLOSING_TAG = re.compile(r"</answer>", re.IGNORECASE)


def _tagged(text: str) -> str | None:
    """The content of the last complete pair of answer tags that has any."""
    openings = [match.end() for match in _OPENING_TAG.finditer(text)]
    closings = [match.start() for match in _CLOSING_TAG.finditer(text)]
    while closings:
        end = closings.pop()
        while openings and openings[-1] > end:
            openings.pop()
        if not openings:
            return None
        content = text[openings[-1] : end].strip()
        if content and "</answer>" not in content.lower():
            return _boxed(content) or content
    return None


# --- statements -----------------------------------------------------------------------------------------------------

_STATED = (
    r"[ \t*_]{0,6}(?:\([^()\n]{0,40}\)[ \t*_]{0,4})?"
    r"(?:(?:is|are|was|will be|would be|must be|should be|equals|becomes|comes to)\b[ \t*_]{0,4}:?|[:=])[ \t*_]{0,6}"
)
_STATEMENT = re.compile(r"\banswers?\b" + _STATED, re.IGNORECASE)
_LETTER_STATEMENT = re.compile(r"\b(?:answers?|option|choice)\b" + _STATED, re.IGNORECASE)
_CLAUSE_END = re.compile(
    r"[.!?](?=\s|$|[*_\"')])|[;\n]|,?\s(?:because|since|so that|which|where|whereas|but|as we|as the)\b", re.IGNORECASE
)
_NOT_AN_ANSWER = re.compile(
    r"(?:not|n't|unknown|unclear|wrong|correct|incorrect|right|as follows|the following|following|therefore|thus|given|"
    r"obtained|found|computed|to be|clearly|probably|maybe|still|yet|that|what|either|in the|i think)\b",
    re.IGNORECASE,
)
_MATHEMATICS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("`", "`"))
_DECORATION = " \t\r\n*_"


def _statements(text: str, pattern: re.Pattern[str]) -> Iterator[str]:
    """What follows the last few "the answer is", the last one first."""
    for match in reversed(deque(pattern.finditer(text), maxlen=20)):
        rest = text[match.end() : match.end() + 4 * _LONGEST_STATEMENT].lstrip()
        if rest:
            yield rest


def _stated(text: str) -> str | None:
    for rest in _statements(text, _STATEMENT):
        answer = _delimited(rest) or _clause(rest)
        if answer and len(answer) <= _LONGEST_STATEMENT and not _NOT_AN_ANSWER.match(answer):
            return answer
    return None


def _delimited(rest: str) -> str | None:
    """Mathematics or code between its delimiters, with a short remainder such as a unit after it."""
    for opening, closing in _MATHEMATICS:
        if rest.startswith(opening):
            end = rest.find(closing, len(opening))
            if end < 0:
                return None
            inside = rest[len(opening) : end].strip(_DECORATION)
            behind = rest[end + len(closing) :].split("\n")[0]
            after = "" if behind.startswith(",") else _clause(behind) or ""
            is_unit = re.fullmatch(r"[A-Za-z%°/^0-9 ]{1,20}", after) and len(after.split()) <= 2
            return f"{inside} {after}" if inside and is_unit else inside or None
    return None


def _clause(rest: str) -> str | None:
    end = _CLAUSE_END.search(rest)
    clause = rest[: end.start()] if end else rest
    return clause.strip(_DECORATION + ",.:") or None


# --- a number as the conclusion -------------------------------------------------------------------------------------

_NUMBER = r"[-+−]?\$?(?:\d{1,3}(?:,\d{3}){1,10}|\d{1,60})?(?:\.\d{1,60})?(?:\s?/\s?\d{1,60})?\s?%?"
_ONLY_NUMBER = re.compile(rf"(?:=|≈|⇒|→|->|=>)?\s*({_NUMBER})")
_CONCLUDED = re.compile(rf"(?:=|\b(?:is|are|gives?|get|gets|equals|makes|total(?:s)?|leaves|to))\s*({_NUMBER})")
_CUE = re.compile(
    r"(?:so|thus|therefore|hence|finally|in total|altogether|in conclusion|(?:the )?(?:result|total)|overall)\b",
    re.IGNORECASE,
)


def _concluding_number(text: str) -> str | None:
    """The number of the last line, if that line is nothing else, an equation, or opens with a word of conclusion."""
    lines = text.rstrip().rsplit("\n", 1)
    line = lines[-1][-400:].strip().strip("*_`$ ").rstrip(".! ").strip("*_`$ ")
    line = line.removeprefix("\\(").removesuffix("\\)").strip()
    alone = _ONLY_NUMBER.fullmatch(line)
    if alone and any(map(str.isdigit, alone.group(1))):
        return alone.group(1).strip()
    sentence = re.split(r"(?<=[.!?])\s+", line)[-1]
    start = max(sentence.rfind("="), *(sentence.rfind(f" {verb} ") for verb in _VERBS))
    if start < 0:
        return None
    concluded = _CONCLUDED.fullmatch(sentence[start:].replace("**", "").replace("$", "").strip())
    if not concluded or not any(map(str.isdigit, concluded.group(1))):
        return None
    return concluded.group(1).strip() if sentence[start] == "=" or _CUE.match(sentence) else None


_VERBS = ("is", "are", "give", "gives", "get", "gets", "equals", "makes", "total", "totals", "leaves", "to")


# --- option letters -------------------------------------------------------------------------------------------------

_LETTER_FIRST = re.compile(
    r"(?i:the\s+)?(?i:correct\s+)?(?i:option|choice|answer)?\s*(?:is|:)?\s*"
    r"(?:[(\[]\s*([A-Ja-j])\s*[)\]]|([A-J])(?=$|[).:,\]]|\s*[-–—]\s|\s+\(|\s+(?:because|since|as|and|is)\b)|([a-j])(?=$|\)))"
)
_LETTER_MENTION = re.compile(r"\b(?:option|choice)\s*:?\s*[*_]{0,3}[(\[]?([A-J])\b", re.IGNORECASE)
_WRAPPERS = re.compile(
    r"\\(?:text|textbf|mathrm|mathbf|mathit|rm|bf|boxed|left|right)(?![A-Za-z])|[{}$*_`~]|\\[ ,;!()\[\]]"
)


def _letter(answer: str | None) -> str | None:
    """The option letter that an answer opens with."""
    if answer is None:
        return None
    bare = _WRAPPERS.sub(" ", answer[:_LONGEST_STATEMENT]).strip()
    match = _LETTER_FIRST.match(bare)
    return next(filter(None, match.groups())).upper() if match else None


def _stated_letter(text: str) -> str | None:
    for rest in _statements(text, _LETTER_STATEMENT):
        line = rest.split("\n", 1)[0]
        letter = _letter(line) or _letter(_clause(line))
        if letter:
            return letter
    return None


def _concluding_letter(text: str) -> str | None:
    """A letter that is the whole last line, or the last option that the last line names."""
    line = text.rstrip().rsplit("\n", 1)[-1][-400:].strip()
    alone = re.fullmatch(r"\W*([A-J])\W*", _WRAPPERS.sub(" ", line))
    if alone:
        return alone.group(1)
    mentions = [match.group(1).upper() for match in _LETTER_MENTION.finditer(line)]
    return mentions[0] if len(set(mentions)) == 1 else None


# --- code -----------------------------------------------------------------------------------------------------------

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)[^\n`]*$", re.MULTILINE)
_NO_PROGRAM = {"text", "txt", "plaintext", "output", "console", "bash", "sh", "shell", "json", "diff", "markdown", "md"}


def _code(text: str) -> str | None:
    """The last complete fenced block that is not marked as something other than a program."""
    blocks: list[tuple[str, str]] = []
    opening: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opening is None:
            opening = fence
        elif fence.group(1).startswith(opening.group(1)) and not fence.group(2):
            blocks.append((opening.group(2).lower(), text[opening.end() + 1 : fence.start()]))
            opening = None
    programs = [body for language, body in blocks if language not in _NO_PROGRAM]
    return next(reversed(programs or [body for _, body in blocks]), None)


def _choice(source: Callable[[str], str | None]) -> Callable[[str], str | None]:
    return lambda text: _letter(source(text))


_SOURCES: dict[Task, tuple[Callable[[str], str | None], ...]] = {
    "math": (_boxed, _tagged, _stated, _concluding_number),
    "choice": (_choice(_boxed), _choice(_tagged), _stated_letter, _concluding_letter),
    "code": (_code,),
    "general": (_boxed, _tagged, _stated),
    "auto": (_boxed, _tagged, _stated, _code, _concluding_number),
}
