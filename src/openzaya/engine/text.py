"""Token ids of one reply to text, cut at stop strings, while the reply is still being written."""

from __future__ import annotations

from collections.abc import Sequence

from openzaya.chat import control
from openzaya.chat.tokenizer import IncrementalDecoder, Tokenizer


def hidden_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that no text of a reply shows: those that frame turns, but not the tags that readers split it by."""
    return tokenizer.special_ids - {tokenizer.id_of(tag) for tag in control.MARKUP}


class StopStrings:
    """Ends a text before the first of some strings to be completed; holds back only what could begin one."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises ValueError for an empty stop string, which would end every reply at once."""
        if "" in stops:
            raise ValueError("a stop string is empty; leave it out or give at least one character")
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def feed(self, text: str) -> str:
        """What may be shown after `text`; nothing once a stop string was found."""
        if self.found is not None:
            return ""
        self._held += text
        ends = {stop: place + len(stop) for stop in self._stops if (place := self._held.find(stop)) >= 0}
        if ends:
            first = min(ends.values())
            # Of stops completed by the same character the longest began first.
            self.found = max((stop for stop, end in ends.items() if end == first), key=len)
            shown, self._held = self._held[: first - len(self.found)], ""
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return shown

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


class ReplyText:
    """The text of one reply, a token at a time; its pieces never split a UTF-8 sequence or show part of a stop."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._decoder = IncrementalDecoder(tokenizer)
        self._hidden = hidden_ids(tokenizer)
        self._stops = StopStrings(stops) if stops else None

    @property
    def stopped_at(self) -> str | None:
        """The stop string that ended the text, once there is one."""
        return self._stops.found if self._stops else None

    def feed(self, token_id: int) -> str:
        """What may be shown after this token; often more or less than the token's own text."""
        text = "" if token_id in self._hidden else self._decoder.feed(token_id)
        return self._stops.feed(text) if self._stops and text else text

    def finish(self) -> str:
        """What is left to show at the end; nothing where a stop string ended the text."""
        rest = self._decoder.flush()
        return rest if self._stops is None else self._stops.feed(rest) + self._stops.flush()
