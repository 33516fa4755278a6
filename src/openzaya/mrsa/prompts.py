"""The one prompt builder: how tails of earlier candidates are put before the model.

The question comes first and the tails last, so that all aggregations of a round share the longest possible prefix, and
so that a server which cuts long prompts at the end never loses the question. A wording is split once into its fixed
pieces and the question and the tails are laid between them: nothing inside a question or a tail is ever read as a
placeholder or as a format string, whatever braces it holds.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from openzaya.backends.protocol import Message

Task = Literal["math", "code", "choice", "general"]
TASKS: tuple[Task, ...] = get_args(Task)

_PLACEHOLDER = re.compile(r"\{\{([a-z_]+)\}\}")
_FORMS = ("aggregate", "refine")


class PromptError(ValueError):
    """A wording, or a conversation, from which no prompt can be made."""


@dataclass(frozen=True, slots=True)
class Wording:
    """The fixed text before, between and after the question and the tails."""

    before: str
    between: str
    after: str

    @classmethod
    def parse(cls, text: str, where: str) -> Wording:
        """Split a wording at its placeholders; raises PromptError where one is missing, doubled or misplaced."""
        found = _PLACEHOLDER.findall(text)
        if found != ["question", "tails"]:
            raise PromptError(
                f"{where} has the placeholders {found}; it needs {{{{question}}}} and then {{{{tails}}}}, once each"
            )
        before, _, between, _, after = _PLACEHOLDER.split(text)
        return cls(before, between, after)


@dataclass(frozen=True, slots=True)
class Prompts:
    """Every wording in use: for each task one that aggregates several tails and one that refines a single tail."""

    header_before: str
    header_after: str
    aggregate: Mapping[Task, Wording]
    refine: Mapping[Task, Wording]

    def wording(self, task: Task, tails: int) -> Wording:
        """The wording for this many tails."""
        return (self.refine if tails == 1 else self.aggregate)[task]

    def block(self, tails: Sequence[str], *, numbered: bool) -> str:
        """The tails one after another, each to the byte, under `[1]`, `[2]` and so on."""
        if not numbered:
            return tails[0]
        return "\n\n".join(
            f"{self.header_before}{number}{self.header_after}\n{tail}" for number, tail in enumerate(tails, 1)
        )

    def fixed_text(self, task: Task, tails: int) -> str:
        """What a prompt with this many tails holds besides question and tails: the constant of the length bound."""
        wording = self.wording(task, tails)
        empty = self.block([""] * tails, numbered=tails > 1)
        return wording.before + wording.between + empty + wording.after

    @property
    def digest(self) -> str:
        """SHA-256 of the wordings, for journals."""
        forms = [
            (form, task, w.before, w.between, w.after)
            for form, words in (("aggregate", self.aggregate), ("refine", self.refine))
            for task, w in sorted(words.items())
        ]
        return hashlib.sha256(repr((self.header_before, self.header_after, forms)).encode()).hexdigest()


def _parse(table: Mapping[str, Any], where: str, base: Prompts | None) -> Prompts:
    unknown = sorted(set(table) - {"header", *TASKS})
    if unknown:
        raise PromptError(f"{where} has the unknown key {unknown[0]!r}; known are header, {', '.join(TASKS)}")
    header = table.get("header")
    if header is None and base is not None:
        header_before, header_after = base.header_before, base.header_after
    else:
        if not isinstance(header, str) or _PLACEHOLDER.findall(header) != ["number"]:
            raise PromptError(
                f"header in {where} is {header!r}; it needs {{{{number}}}} once, as in '[{{{{number}}}}]'"
            )
        header_before, _, header_after = _PLACEHOLDER.split(header)

    wordings: dict[str, dict[Task, Wording]] = {
        "aggregate": dict(base.aggregate) if base else {},
        "refine": dict(base.refine) if base else {},
    }
    for task in TASKS:
        section = table.get(task, {})
        if not isinstance(section, Mapping):
            raise PromptError(f"{task} in {where} is {section!r}; it must be a table with aggregate and refine")
        for form, text in section.items():
            if form not in _FORMS or not isinstance(text, str):
                raise PromptError(f"[{task}] {form} in {where} must be a text named aggregate or refine")
            wordings[form][task] = Wording.parse(text, f"[{task}] {form} in {where}")
    return Prompts(header_before, header_after, wordings["aggregate"], wordings["refine"])


@cache
def bundled_prompts() -> Prompts:
    """The wordings that come with the package."""
    text = resources.files("openzaya.mrsa").joinpath("prompts.toml").read_text(encoding="utf-8")
    return _parse(tomllib.loads(text), "the bundled prompts.toml", None)


def load_prompts(path: str | Path) -> Prompts:
    """Wordings from a TOML file with the keys of the bundled one; what the file leaves out stays as bundled.

    Raises PromptError, naming the file, where it cannot be read or a wording lacks a placeholder.
    """
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PromptError(f"cannot read the prompts file {path}: {error}") from error
    return _parse(table, str(path), bundled_prompts())


def question_text(messages: Sequence[Message]) -> str:
    """The text of the last user turn; raises PromptError where there is none."""
    content = messages[_last_user(messages)].get("content")
    if isinstance(content, str):
        return content
    return "\n".join(_part_text(part) for part in content or () if _is_text(part))


def aggregation_messages(
    messages: Sequence[Message], tails: Sequence[str], task: Task, prompts: Prompts | None = None
) -> list[Message]:
    """The conversation with its last user turn wrapped around `tails`; every other turn stays as it is.

    Two tails or more are numbered and aggregated; a single one is refined. The prompt is as long as the question, the
    tails and `Prompts.fixed_text` together. A turn made of parts keeps them in their order, pictures included, where
    the question stands. With no tails at all the conversation is returned unwrapped.
    """
    if not tails:
        return list(messages)
    prompts = prompts or bundled_prompts()
    wording = prompts.wording(task, len(tails))
    place = _last_user(messages)
    turn = messages[place]
    ending = wording.between + prompts.block(tails, numbered=len(tails) > 1) + wording.after
    content = turn.get("content")
    wrapped: Any
    if isinstance(content, str):
        wrapped = wording.before + content + ending
    else:
        opening = [{"type": "text", "text": wording.before}] if wording.before else []
        wrapped = [*opening, *(content or ()), {"type": "text", "text": ending}]
    return [*messages[:place], {**turn, "content": wrapped}, *messages[place + 1 :]]


def _last_user(messages: Sequence[Message]) -> int:
    for place in range(len(messages) - 1, -1, -1):
        if messages[place].get("role") == "user":
            return place
    raise PromptError("the conversation has no user turn; Markovian RSA needs a question to work on")


def _is_text(part: Any) -> bool:
    return isinstance(part, str) or (isinstance(part, Mapping) and part.get("type") in ("text", "input_text"))


def _part_text(part: Any) -> str:
    return part if isinstance(part, str) else str(part.get("text", ""))


_OPTION = re.compile(r"(?m)(?:^|\s)\(?([A-E])[).:]\s*\S")
_WRITE_CODE = re.compile(
    r"(?i)\b(?:write(?! down)|implement|complete|create|fix|debug|code|design)\b"
    r"(?:(?!\b(?:outputs?|prints?|results?|values?)\b)[^.?!\n]){0,80}"
    r"\b(?:function|program|script|class|method|python|javascript|typescript|java|rust|c\+\+|sql|golang|bash|regex)\b"
)
_CODE_FRAME = re.compile(r"(?i)\bstandard input\b|\bstdin\b|\A\s*(?:def|class|import|from) \w+")
_MATHS = re.compile(
    r"(?i)\d|\\boxed|\\frac|\\\(|\$[^$]+\$|\b(?:solve|compute|evaluate|calculate|simplify|integral|equation|integers?|"
    r"primes?|polynomial|triangle|probability|how many|prove|derivative|sum of|remainder)\b"
)


def detect_task(question: str) -> Task:
    """A guess of the task from the question alone: lettered options, a request for code, mathematics, or neither."""
    letters = _OPTION.findall(question)
    if letters[:1] == ["A"] and "B" in letters[1:]:
        return "choice"
    if _WRITE_CODE.search(question) or _CODE_FRAME.search(question):
        return "code"
    return "math" if _MATHS.search(question) else "general"
