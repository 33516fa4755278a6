"""Pieces of replies from the engine's thread to asyncio, one wake-up a step however many replies are read."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator

from openzaya.engine.worker import Piece


class LoopMailbox:
    """Carries pieces to the readers of one event loop.

    The engine's thread posts as many as it likes and rings once a step; a reader that was slow gets all that waited in
    one piece. Waking the loop for each token of hundreds of rows would cost more than computing them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # Weak, so that a loop that is done with does not live as long as the engine.
        self._loop = weakref.ref(loop)
        self._posted: deque[tuple[PieceReader, Piece | BaseException]] = deque()

    def post(self, reader: PieceReader, piece: Piece | BaseException) -> None:
        """From the engine's thread."""
        self._posted.append((reader, piece))

    def ring(self) -> None:
        """From the engine's thread, once a step."""
        loop = self._loop()
        if not self._posted or loop is None:
            return
        try:
            loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:  # the loop is closed, and its readers are gone with it
            self._posted.clear()

    def _deliver(self) -> None:
        while self._posted:
            reader, piece = self._posted.popleft()
            reader.put(piece)


class Mailboxes:
    """One mailbox for each event loop that reads replies."""

    def __init__(self) -> None:
        self._of: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopMailbox] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def of(self, loop: asyncio.AbstractEventLoop) -> LoopMailbox:
        with self._lock:
            if loop not in self._of:
                self._of[loop] = LoopMailbox(loop)
            return self._of[loop]

    def ring(self) -> None:
        """Wake every loop that has something to read."""
        with self._lock:
            mailboxes = list(self._of.values())
        for mailbox in mailboxes:
            mailbox.ring()


class PieceReader:
    """The reader's end of one reply, used on its event loop only."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []
        self._error: BaseException | None = None
        self._arrived = asyncio.Event()

    def put(self, piece: Piece | BaseException) -> None:
        if isinstance(piece, BaseException):
            self._error = piece
        else:
            self._pieces.append(piece)
        self._arrived.set()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """Pieces until the last one; raises what ended the reply where it failed."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            if self._pieces:
                piece = joined(self._pieces)
                self._pieces = []
                yield piece
                if piece.output is not None:
                    return
            if self._error is not None:
                raise self._error


def joined(pieces: list[Piece]) -> Piece:
    """Consecutive pieces as one."""
    if len(pieces) == 1:
        return pieces[0]
    return Piece(
        token_ids=tuple(token for piece in pieces for token in piece.token_ids),
        texts=tuple(text for piece in pieces for text in piece.texts),
        logprobs=tuple(record for piece in pieces for record in piece.logprobs),
        output=pieces[-1].output,
    )
