"""Tool calls in ZAYA's XML form: written for a prompt, and read from a reply while it is being written.

    <zyphra_tool_call>
    <function=NAME>
    <parameter=FIRST>
    VALUE
    </parameter>
    </function>
    </zyphra_tool_call>

The form has no escaping. A value therefore ends at the first `</parameter>` that is followed by another parameter or by
the end of the call; a value that spells all of that itself is cut there. Nor can a value hold a call's end without it,
or a call's start: a model that forgot a closing tag is far more likely than one that quotes a call, and taking two
calls for one would run what nobody asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from openzaya.chat.arguments import ToolSchemas
from openzaya.chat.control import TOOL_CALL_CLOSE, TOOL_CALL_OPEN
from openzaya.chat.reasoning import length_of_started

_FUNCTION_OPEN = "<function="
_FUNCTION_CLOSE = "</function>"
_PARAMETER_OPEN = "<parameter="
_PARAMETER_CLOSE = "</parameter>"
_LANDMARKS_IN_VALUE = (_PARAMETER_CLOSE, _FUNCTION_CLOSE, TOOL_CALL_OPEN)
_LANDMARK_IN_VALUE = re.compile("|".join(map(re.escape, _LANDMARKS_IN_VALUE)))
_NAME = re.compile(r"[^<>\n]{1,256}")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A complete call; `arguments` is the JSON text of an object, `index` counts the calls of one reply from 0."""

    index: int
    name: str
    arguments: str


class ToolCallParser:
    """Reads a reply's content: text comes out as it arrives, a call once it is complete.

    What is not a well-formed call is content, to the letter: a tag that no `<function=NAME>` follows, a call that never
    ends, one that lacks a closing tag or gives a parameter twice. Inside a fenced code block everything is
    content, because there a call is shown and not made. The single line break before a call, and the blanks between and
    after calls, belong to the form.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        """`tools` are OpenAI tool definitions; their JSON schemas decide the types of arguments."""
        self._schemas = ToolSchemas(tools)
        self._fence = _Fence()
        self._pending = ""
        self._call: _CallReader | None = None
        self._before_call = ""
        """The blanks in front of the call being read, which are content again if it is not one."""
        self._calls = 0
        self._right_after_call = False

    @property
    def open_call(self) -> str | None:
        """The function that is being called right now, as soon as its name is known; it may yet prove malformed."""
        return self._call.name if self._call else None

    def feed(self, text: str) -> list[str | ToolCall]:
        """Take the next text of the content; gives text and complete calls in their order."""
        return list(_joined(self._advance(text, ended=False)))

    def finish(self) -> list[str | ToolCall]:
        """What was held back, now that the reply has ended; an unfinished call comes as content."""
        return list(_joined(self._advance("", ended=True)))

    def _advance(self, text: str, *, ended: bool) -> Iterator[str | ToolCall]:
        while True:
            if self._call is None:
                self._pending += text
                yield from self._read_content(ended)
                if self._call is None:
                    return
                text, self._pending = self._pending, ""
            outcome = self._call.feed(text)
            text = ""
            if outcome is _Outcome.UNFINISHED and not ended:
                return
            if outcome is _Outcome.COMPLETE:
                yield self._complete(self._call)
            else:
                yield from self._give_up(self._call)
            self._call = None

    def _read_content(self, ended: bool) -> Iterator[str]:
        """Give out content up to where a call may start; sets `_call` where one does."""
        while (start := self._pending.find(TOOL_CALL_OPEN)) >= 0:
            before, behind = self._pending[:start], self._pending[start + len(TOOL_CALL_OPEN) :]
            if self._fence.open_after(before):
                yield from self._give_out(start + len(TOOL_CALL_OPEN))
                continue
            all_blank = self._right_after_call and not before.strip()
            self._before_call = before if all_blank else "\n" * before.endswith("\n")
            yield from self._give_out(start - len(self._before_call))
            self._pending, self._call = behind, _CallReader()
            return
        if self._right_after_call and not self._pending.strip():
            self._pending = "" if ended else self._pending
            return
        held = (
            0
            if ended
            else max(length_of_started(self._pending, tag) for tag in (TOOL_CALL_OPEN, "\n" + TOOL_CALL_OPEN))
        )
        if self._right_after_call and not self._pending[: len(self._pending) - held].strip():
            return
        yield from self._give_out(len(self._pending) - held)

    def _give_out(self, count: int) -> Iterator[str]:
        text, self._pending = self._pending[:count], self._pending[count:]
        if text:
            self._right_after_call = False
            self._fence.advance(text)
            yield text

    def _complete(self, call: _CallReader) -> ToolCall:
        self._pending, self._right_after_call = call.rest, True
        arguments = self._schemas.typed(call.name or "", call.parameters)
        self._calls += 1
        return ToolCall(self._calls - 1, call.name or "", json.dumps(arguments, ensure_ascii=False))

    def _give_up(self, call: _CallReader) -> Iterator[str]:
        """The opening tag is text after all; what followed it is read again, since a call may start in it."""
        self._pending = self._before_call + TOOL_CALL_OPEN + call.everything
        yield from self._give_out(len(self._before_call) + len(TOOL_CALL_OPEN))


class _Outcome(Enum):
    UNFINISHED = 0
    COMPLETE = 1
    MALFORMED = 2


class _Expected(Enum):
    FUNCTION = 0
    PARAMETER_OR_END = 1
    VALUE = 2
    CALL_END = 3


class _CallReader:
    """Reads one call behind its opening tag, a chunk at a time, in time linear in its length."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.parameters: dict[str, str] = {}
        self._expected = _Expected.FUNCTION
        self._fed: list[str] = []
        self._unread = ""
        self._parameter = ""
        self._value: list[str] = []

    @property
    def everything(self) -> str:
        """All text fed, whether understood or not."""
        return "".join(self._fed)

    @property
    def rest(self) -> str:
        """What was fed behind the end of a complete call."""
        return self._unread

    def feed(self, text: str) -> _Outcome:
        self._fed.append(text)
        self._unread += text
        step = {
            _Expected.FUNCTION: self._read_function,
            _Expected.PARAMETER_OR_END: self._read_parameter_or_end,
            _Expected.VALUE: self._read_value,
            _Expected.CALL_END: self._read_call_end,
        }
        while (outcome := step[self._expected]()) is None:
            pass
        return outcome

    def _read_function(self) -> _Outcome | None:
        found = _named_tag(self._unread, _FUNCTION_OPEN)
        if not isinstance(found, _Tag):
            return found
        self.name, self._unread = found.name, self._unread[found.end :]
        self._expected = _Expected.PARAMETER_OR_END
        return None

    def _read_parameter_or_end(self) -> _Outcome | None:
        end = _plain_tag(self._unread, _FUNCTION_CLOSE)
        if isinstance(end, _Tag):
            self._unread, self._expected = self._unread[end.end :], _Expected.CALL_END
            return None
        found = _named_tag(self._unread, _PARAMETER_OPEN)
        if not isinstance(found, _Tag):
            return _Outcome.UNFINISHED if _Outcome.UNFINISHED in (end, found) else _Outcome.MALFORMED
        if found.name in self.parameters:
            return _Outcome.MALFORMED
        self._parameter, self._value, self._unread = found.name, [], self._unread[found.end :]
        self._expected = _Expected.VALUE
        return None

    def _read_value(self) -> _Outcome | None:
        landmark = _LANDMARK_IN_VALUE.search(self._unread)
        if landmark is None:
            held = max(length_of_started(self._unread, tag) for tag in _LANDMARKS_IN_VALUE)
            self._take_into_value(len(self._unread) - held)
            return _Outcome.UNFINISHED
        tag = landmark[0]
        self._take_into_value(landmark.start())
        outcome = _meaning_in_value(tag, self._unread[len(tag) :])
        if outcome is None:
            self._take_into_value(len(tag))
            return None
        if outcome is not _Outcome.COMPLETE:
            return outcome
        self.parameters[self._parameter] = "".join(self._value).removeprefix("\n").removesuffix("\n")
        self._unread, self._expected = self._unread[len(_PARAMETER_CLOSE) :], _Expected.PARAMETER_OR_END
        return None

    def _read_call_end(self) -> _Outcome | None:
        found = _plain_tag(self._unread, TOOL_CALL_CLOSE)
        if not isinstance(found, _Tag):
            return found
        self._unread = self._unread[found.end :]
        return _Outcome.COMPLETE

    def _take_into_value(self, count: int) -> None:
        self._value.append(self._unread[:count])
        self._unread = self._unread[count:]


@dataclass(frozen=True, slots=True)
class _Tag:
    name: str
    end: int


def _plain_tag(text: str, tag: str) -> _Tag | _Outcome:
    """`tag` at the start of `text`, blanks aside; UNFINISHED where more text may make it one."""
    stripped = text.lstrip()
    if stripped.startswith(tag):
        return _Tag("", len(text) - len(stripped) + len(tag))
    return _Outcome.UNFINISHED if tag.startswith(stripped) else _Outcome.MALFORMED


def _named_tag(text: str, opening: str) -> _Tag | _Outcome:
    """A tag such as `<function=NAME>` at the start of `text`, blanks aside."""
    found = _plain_tag(text, opening)
    if not isinstance(found, _Tag):
        return found
    name = _NAME.match(text, found.end)
    end = name.end() if name else found.end
    if end == len(text):
        return _Outcome.UNFINISHED
    return _Tag(name[0].strip(), end + 1) if name and text[end] == ">" and name[0].strip() else _Outcome.MALFORMED


def _meaning_in_value(tag: str, behind: str) -> _Outcome | None:
    """What `tag` means in a value, with `behind` after it: the value's end, a broken call, unknown, or text (None)."""
    if tag == _PARAMETER_CLOSE:
        return _value_end(behind)
    # The call ends, or another starts, with this value still open.
    found = _plain_tag(behind, TOOL_CALL_CLOSE if tag == _FUNCTION_CLOSE else _FUNCTION_OPEN)
    if isinstance(found, _Tag):
        return _Outcome.MALFORMED
    return found if found is _Outcome.UNFINISHED else None


def _value_end(behind: str) -> _Outcome | None:
    parameter = _named_tag(behind, _PARAMETER_OPEN)
    function_end = _plain_tag(behind, _FUNCTION_CLOSE)
    call_end = (
        _plain_tag(behind[function_end.end :], TOOL_CALL_CLOSE) if isinstance(function_end, _Tag) else function_end
    )
    if isinstance(parameter, _Tag) or isinstance(call_end, _Tag):
        return _Outcome.COMPLETE
    return _Outcome.UNFINISHED if _Outcome.UNFINISHED in (parameter, call_end) else None


class _Fence:
    """Whether text so far ends inside a fenced code block (``` or ~~~), as Markdown has them."""

    _OPENING = re.compile(r"\s*(?P<mark>`{3,}(?=[^`]*$)|~{3,})")

    def __init__(self) -> None:
        self._mark: str | None = None
        self._line: list[str] = []

    def advance(self, text: str) -> None:
        *ends, rest = text.split("\n")
        for end in ends:
            self._mark = self._mark_after("".join(self._line) + end, self._mark)
            self._line = []
        self._line.append(rest)

    def open_after(self, text: str) -> bool:
        """Whether a block is open behind further `text`, which is not taken."""
        mark, start = self._mark, "".join(self._line)
        for line in (start + text).split("\n")[:-1]:
            mark = self._mark_after(line, mark)
        return mark is not None

    def _mark_after(self, line: str, mark: str | None) -> str | None:
        found = self._OPENING.match(line)
        if mark is None:
            return found["mark"] if found else None
        closes = found is not None and found["mark"].startswith(mark) and not line.strip().strip(mark[0])
        return None if closes else mark


def parse_tool_calls(text: str, tools: Sequence[Mapping[str, Any]] = ()) -> tuple[str, list[ToolCall]]:
    """The text and the calls of a whole reply's content, as `ToolCallParser` reads it."""
    parser = ToolCallParser(tools)
    pieces = parser.feed(text) + parser.finish()
    return (
        "".join(piece for piece in pieces if isinstance(piece, str)),
        [piece for piece in pieces if isinstance(piece, ToolCall)],
    )


def render_tool_calls(calls: Sequence[ToolCall | Mapping[str, Any]]) -> str:
    """Calls in ZAYA's XML form, as the chat template writes them.

    A call is a `ToolCall`, an OpenAI tool call or its `function` object. Raises ValueError for a name that a tag cannot
    hold and for arguments that are not a JSON object.
    """
    return "\n".join(map(_render_call, calls))


def _render_call(call: ToolCall | Mapping[str, Any]) -> str:
    given: Mapping[str, Any] = {"name": call.name, "arguments": call.arguments} if isinstance(call, ToolCall) else call
    function: Mapping[str, Any] = given.get("function", given)
    name, arguments = function["name"], function.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(arguments, Mapping):
        raise ValueError(f"the arguments of {name} are {arguments!r}; give a JSON object")
    parameters = "".join(
        f"{_PARAMETER_OPEN}{_checked(key)}>\n{_written(value)}\n{_PARAMETER_CLOSE}\n"
        for key, value in arguments.items()
    )
    return f"{TOOL_CALL_OPEN}\n{_FUNCTION_OPEN}{_checked(name)}>\n{parameters}{_FUNCTION_CLOSE}\n{TOOL_CALL_CLOSE}"


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name) or name != name.strip():
        raise ValueError(
            f"{name!r} cannot stand in a tool call; use a name without '<', '>', line breaks and outer blanks"
        )
    return name


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _joined(pieces: Iterator[str | ToolCall]) -> Iterator[str | ToolCall]:
    """The same pieces with neighbouring texts put together."""
    texts: list[str] = []
    for piece in pieces:
        if isinstance(piece, str):
            texts.append(piece)
            continue
        if texts:
            yield "".join(texts)
            texts = []
        yield piece
    if texts:
        yield "".join(texts)
