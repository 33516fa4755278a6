from __future__ import annotations

import asyncio
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from typer.testing import Result

from fake_openai import Failure, FakeServer, Reply, Request
from openzaya.backends.protocol import BackendError, ChatParams, Delta, Message
from openzaya.cli.chat import Conversation, converse

Program = Callable[..., Result]


def test_in_a_pipe_every_line_is_a_turn_and_the_output_is_the_replies(openzaya_program: Program) -> None:
    replies = [Reply(reasoning="a greeting", content="Hello."), Reply(content="Two\nlines.")]
    with FakeServer(replies) as server:
        result = openzaya_program("chat", "--backend", server.url, stdin="Hi\n\nAnd then?")
        asked = [request.messages for request in server.requests]
    assert (result.exit_code, result.stdout) == (0, "Hello.\nTwo\nlines.\n")
    assert asked[1] == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "And then?"},
    ]


def test_its_options_reach_the_requests(openzaya_program: Program) -> None:
    options = ["--system", "Be brief.", "--max-tokens", 7, "--temperature", 0.5, "--top-p", 0.9, "--seed", 3]
    with FakeServer(Reply(content="Yes.")) as server:
        openzaya_program("chat", "--backend", server.url, *options, stdin="Hi\n")
        body = server.requests[0].body
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["max_tokens"], body["temperature"], body["top_p"], body["seed"]) == (7, 0.5, 0.9, 3)


def test_a_server_that_fails_ends_a_piped_conversation_with_code_3(openzaya_program: Program) -> None:
    with FakeServer([Reply(content="One."), Failure(status=400, message="no more")]) as server:
        result = openzaya_program("chat", "--backend", server.url, stdin="a\nb\nc\n")
        assert len(server.requests) == 2
    assert (result.exit_code, result.stdout) == (3, "One.\n")
    assert "no more" in result.stderr


def test_contradicting_options_are_refused(openzaya_program: Program) -> None:
    assert openzaya_program("chat", "--top-p", 0, stdin="").exit_code == 2
    assert openzaya_program("chat", "--model", "tiny", "--backend", "http://h", stdin="").exit_code == 2


# ---- the conversation itself ----


class Spoken:
    """A backend whose replies are given; "…" waits for ever, "!" fails."""

    def __init__(self, *replies: Sequence[str]) -> None:
        self.replies = list(replies)
        self.asked: list[list[Message]] = []
        self.closed = 0

    async def chat(self, messages: Sequence[Message], params: ChatParams) -> AsyncIterator[Delta]:
        self.asked.append(list(messages))
        try:
            for piece in self.replies[len(self.asked) - 1]:
                if piece == "…":
                    await asyncio.get_running_loop().create_future()
                if piece == "!":
                    raise BackendError("the source is gone")
                yield Delta(content=piece)
        finally:
            self.closed += 1


class Scripted:
    """A screen with given input that notes what it shows; after so many pieces of a reply it interrupts."""

    def __init__(self, *turns: str, interrupt_after: int | None = None) -> None:
        self.turns = list(turns)
        self.interrupt_after = interrupt_after
        self.shown: list[str] = []

    def read(self) -> str | None:
        return self.turns.pop(0) if self.turns else None

    def write(self, reasoning: str, content: str) -> None:
        self.shown.append(reasoning + content)
        if self.interrupt_after == len(self.shown):
            os.kill(os.getpid(), 2)

    def end_reply(self, *, stopped: bool) -> None:
        self.shown.append("(stopped)" if stopped else "(end)")

    def tell(self, sentence: str) -> None:
        self.shown.append(sentence)

    def failed(self, error: Exception) -> None:
        self.shown.append(f"failed: {error}")


def talk(backend: Spoken, screen: Scripted) -> Conversation:
    conversation = Conversation(backend, ChatParams())  # type: ignore[arg-type]
    with asyncio.Runner() as runner:
        converse(conversation, runner, screen)
    return conversation


def test_an_interrupt_stops_the_reply_and_not_the_conversation() -> None:
    backend, screen = Spoken(["One ", "two", "…"], ["Fine."]), Scripted("count", "thanks", interrupt_after=2)
    conversation = talk(backend, screen)
    assert screen.shown == ["One ", "two", "(stopped)", "Fine.", "(end)"]
    assert backend.closed == 2, "the stream of the stopped reply is closed"
    assert [turn["content"] for turn in conversation.turns] == ["count", "One two", "thanks", "Fine."]


def test_a_turn_that_failed_leaves_no_trace() -> None:
    backend, screen = Spoken(["!"], ["Now."]), Scripted("a", "b")
    conversation = talk(backend, screen)
    assert screen.shown == ["failed: the source is gone", "Now.", "(end)"]
    assert [turn["content"] for turn in conversation.turns] == ["b", "Now."]


def test_commands_act_on_the_conversation() -> None:
    backend = Spoken(["1"], ["2"], ["3"])
    screen = Scripted("a", "/system Be kind.", "b", "/clear", "c", "/nonsense", "/help", "/quit", "never asked")
    talk(backend, screen)
    assert [len(messages) for messages in backend.asked] == [1, 2, 2]
    assert backend.asked[2][0] == {"role": "system", "content": "Be kind."}
    assert any("no command /nonsense" in line for line in screen.shown)
    assert any("/system TEXT" in line for line in screen.shown)
    assert screen.turns == ["never asked"]


# ---- a real terminal ----


def read_until(terminal: int, wanted: str, seconds: float = 90.0) -> str:
    """What a terminal shows up to and with `wanted`, and nothing of what comes behind it."""
    shown, end = b"", time.monotonic() + seconds
    while wanted.encode() not in shown:
        assert time.monotonic() < end, f"{wanted!r} did not come; the terminal shows {shown!r}"
        if select.select([terminal], [], [], 0.2)[0]:
            shown += os.read(terminal, 1)
    return shown.decode()


@pytest.mark.slow
def test_on_a_terminal_control_c_stops_a_reply_and_control_d_leaves() -> None:
    def script(request: Request) -> Reply:
        if request.index == 0:
            return Reply(reasoning="let me think", content="counting " * 20, stall_after=12)
        return Reply(content="Goodbye.")

    ours, theirs = pty.openpty()
    with FakeServer(script) as server:
        program = subprocess.Popen(
            [sys.executable, "-m", "openzaya", "chat", "--backend", server.url],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            preexec_fn=lambda: _own_terminal(theirs), env={**os.environ, "TERM": "xterm-256color"},
        )  # fmt: skip
        os.close(theirs)
        try:
            read_until(ours, "Ctrl-D leaves")
            read_until(ours, "›")
            os.write(ours, b"count\n")
            shown = read_until(ours, "counting counting")
            assert "\x1b[2mlet" in shown, "reasoning is dimmed"
            os.write(ours, b"\x03")
            read_until(ours, "(stopped)")
            server.wait_until(lambda seen: len(seen.aborts) == 1, seconds=30)
            os.write(ours, b"bye\n")
            read_until(ours, "Goodbye.")
            read_until(ours, "›")
            os.write(ours, b"\x04")
            assert program.wait(60) == 0
        finally:
            program.kill()
            os.close(ours)


def _own_terminal(terminal: int) -> None:
    """Make a terminal the controlling one of this session, so that Ctrl-C is a signal."""
    import fcntl
    import termios

    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
