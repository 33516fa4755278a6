"""Reasoning apart from answer, while the reply is still being written."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from openzaya.chat import control

Kind = Literal["reasoning", "content"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a reply, with the ids of the tokens that end in it where ids were fed."""

    kind: Kind
    text: str
    ids: tuple[int, ...] = ()


class _State(Enum):
    BEFORE = "no think block yet"
    REASONING = "inside the think block"
    AFTER = "behind the think block"


@dataclass(slots=True)
class _Owner:
    """Tokens and the characters they stand for; the first character that belongs to a kind decides for all."""

    ids: tuple[int, ...]
    characters: int
    kind: Kind | None = None


class ReasoningSplitter:
    """Splits a reply at its first think block; the pieces of each kind join to its text whatever the chunks were.

    Text before the block is content, and so is everything after it, a second block included. Inside the block a further
    `<think>` is text. A block that never closes is reasoning to the end. The line breaks of the written form
    `<think>\\nR\\n</think>\\n\\nA` belong to neither R nor A: one after the opening tag, one before and up to two after
    the closing tag. White space alone before the block is dropped too.

    Where `open_id` and `close_id` are given, tokens are fed with their ids and only those two are tags: the same
    spelling in ordinary tokens is text.
    """

    def __init__(
        self,
        *,
        opened: bool = False,
        open_id: int | None = None,
        close_id: int | None = None,
        open_tag: str = control.THINK_OPEN,
        close_tag: str = control.THINK_CLOSE,
    ) -> None:
        """`opened` says that the prompt already opened the block. Raises ValueError when only one tag has an id."""
        if (open_id is None) != (close_id is None):
            raise ValueError(f"open_id is {open_id} and close_id is {close_id}; give both or neither")
        self._state = _State.REASONING if opened else _State.BEFORE
        self._open_id, self._close_id = open_id, close_id
        self._open_tag, self._close_tag = open_tag, close_tag
        self._line_breaks_to_drop = 1 if opened else 0
        self._only_blanks_so_far = True
        self._pending = ""
        """Text of which the kind is not known yet; `_owners` covers exactly its characters."""
        self._owners: deque[_Owner] = deque()
        self._ids_without_text: tuple[int, ...] = ()
        self._tag_token: tuple[int, int] | None = None
        """Start and length in `_pending` of a tag that was fed as a token."""

    @classmethod
    def after_prompt(cls, prompt: str, *, open_id: int | None = None, close_id: int | None = None) -> ReasoningSplitter:
        """A splitter for what follows `prompt`, which may have opened the think block, or closed it already."""
        _, generation_prompt, written = prompt.rpartition(f"{control.TURN_OPEN}assistant\n")
        if not generation_prompt:
            written = control.THINK_OPEN if prompt.rstrip().endswith(control.THINK_OPEN) else ""
        reader, splitter = cls(), cls(open_id=open_id, close_id=close_id)
        reader.feed(written)
        # What the reader still holds is text of the prompt, and not part of the reply.
        splitter._state, splitter._line_breaks_to_drop = reader._state, reader._line_breaks_to_drop
        splitter._only_blanks_so_far = reader._only_blanks_so_far
        return splitter

    @property
    def in_reasoning(self) -> bool:
        """True from the opening tag to the closing one."""
        return self._state is _State.REASONING

    def feed(self, text: str, token_id: int | None = None) -> list[Piece]:
        """Take the next text, or the next token with its text (empty where it completes no character yet)."""
        if token_id is not None and token_id == self._awaited_id():
            tag = self._close_tag if self.in_reasoning else self._open_tag
            leftover = text.removesuffix(tag)  # U+FFFD for a character that the tag cut short
            self._append(leftover, ())
            self._tag_token = (len(self._pending), len(text) - len(leftover))
            self._append(text[len(leftover) :], None)
        else:
            self._append(text, () if token_id is None else (token_id,))
        return list(self._advance(ended=False))

    def finish(self) -> list[Piece]:
        """What was held back, now that the reply has ended."""
        pieces = list(self._advance(ended=True))
        if self._ids_without_text:
            pieces.append(Piece("reasoning" if self.in_reasoning else "content", "", self._ids_without_text))
            self._ids_without_text = ()
        return pieces

    def _awaited_id(self) -> int | None:
        if self._state is _State.AFTER:
            return None
        return self._close_id if self.in_reasoning else self._open_id

    def _append(self, text: str, ids: tuple[int, ...] | None) -> None:
        """Add text that stands for `ids`, or for a tag (None), which is reported nowhere."""
        self._pending += text
        if ids is None:
            self._owners.append(_Owner((), len(text)))
        elif text:
            self._owners.append(_Owner(self._ids_without_text + ids, len(text)))
            self._ids_without_text = ()
        else:
            self._ids_without_text += ids

    def _advance(self, *, ended: bool) -> Iterator[Piece]:
        """Settle whatever is certain; a state is left by settling its tag, and the next one goes on behind it."""
        if self._state is _State.BEFORE:
            yield from self._advance_before(ended)
        if self._state is _State.REASONING:
            yield from self._advance_reasoning(ended)
        if self._state is _State.AFTER:
            yield from self._drop_line_breaks()
            yield from self._settle(len(self._pending), "content")

    def _advance_before(self, ended: bool) -> Iterator[Piece]:
        start, length = self._find(self._open_tag)
        if start >= 0:
            blank = self._only_blanks_so_far and not self._pending[:start].strip()
            yield from self._settle(start, None if blank else "content")
            yield from self._settle(length, None)
            self._enter(_State.REASONING, line_breaks_to_drop=1)
            return
        certain = len(self._pending) - (0 if ended else self._possible_start(self._open_tag))
        if ended or not self._only_blanks_so_far or self._pending[:certain].strip():
            self._only_blanks_so_far &= certain == 0
            yield from self._settle(certain, "content")

    def _advance_reasoning(self, ended: bool) -> Iterator[Piece]:
        yield from self._drop_line_breaks()
        start, length = self._find(self._close_tag)
        if start >= 0:
            line_break = int(self._pending[:start].endswith("\n"))
            yield from self._settle(start - line_break, "reasoning")
            yield from self._settle(line_break + length, None)
            self._enter(_State.AFTER, line_breaks_to_drop=2)
            return
        held = 0 if ended else self._possible_start("\n" + self._close_tag, self._close_tag)
        yield from self._settle(len(self._pending) - held, "reasoning")

    def _enter(self, state: _State, *, line_breaks_to_drop: int) -> None:
        self._state, self._line_breaks_to_drop, self._tag_token = state, line_breaks_to_drop, None

    def _drop_line_breaks(self) -> Iterator[Piece]:
        while self._line_breaks_to_drop and self._pending:
            if not self._pending.startswith("\n"):
                self._line_breaks_to_drop = 0
                return
            self._line_breaks_to_drop -= 1
            yield from self._settle(1, None)

    def _find(self, tag: str) -> tuple[int, int]:
        """Start and length of the awaited tag in the pending text; the start is -1 where there is none."""
        if self._open_id is None:
            return self._pending.find(tag), len(tag)
        return self._tag_token or (-1, 0)

    def _possible_start(self, *patterns: str) -> int:
        """How many of the last pending characters may turn out to start one of `patterns`."""
        if self._open_id is not None:
            patterns = tuple("\n" for pattern in patterns if pattern.startswith("\n"))
            return int(bool(patterns) and self._pending.endswith("\n"))
        return max(length_of_started(self._pending, pattern) for pattern in patterns)

    def _settle(self, count: int, kind: Kind | None) -> Iterator[Piece]:
        """Take `count` characters off the pending text, as text of `kind` or (None) as part of the form."""
        text, self._pending = self._pending[:count], self._pending[count:]
        if self._tag_token is not None:
            start, length = self._tag_token
            self._tag_token = (start - count, length)
        ids: dict[Kind, tuple[int, ...]] = {}
        while count:
            owner = self._owners[0]
            taken = min(count, owner.characters)
            owner.characters -= taken
            owner.kind = owner.kind or kind
            count -= taken
            if not owner.characters:
                self._owners.popleft()
                if owner.kind and owner.ids:
                    ids[owner.kind] = ids.get(owner.kind, ()) + owner.ids
        if kind and text:
            ids.setdefault(kind, ())
        for its_kind, its_ids in ids.items():
            yield Piece(its_kind, text if its_kind == kind else "", its_ids)


def split_reasoning(text: str, *, opened: bool | None = None) -> tuple[str, str]:
    """The reasoning and the content of a whole reply, as `ReasoningSplitter` splits it.

    Without `opened`, a closing tag with no opening tag before it says that the prompt had opened the block.
    """
    if opened is None:
        before_close, closes, _ = text.partition(control.THINK_CLOSE)
        opened = bool(closes) and control.THINK_OPEN not in before_close
    splitter = ReasoningSplitter(opened=opened)
    pieces = splitter.feed(text) + splitter.finish()
    return _joined(pieces, "reasoning"), _joined(pieces, "content")


def length_of_started(text: str, pattern: str) -> int:
    """The length of the longest end of `text` that is a start of `pattern` and not the whole of it."""
    longest = min(len(text), len(pattern) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(pattern[:length])), 0)


def _joined(pieces: list[Piece], kind: Kind) -> str:
    return "".join(piece.text for piece in pieces if piece.kind == kind)
