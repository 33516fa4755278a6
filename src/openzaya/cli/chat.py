"""`openzaya chat`: a conversation in the terminal, or a turn a line from a pipe."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from openzaya.cli.exits import InputError, say
from openzaya.cli.figures import for_terminal
from openzaya.cli.options import (
    ApiKeyOption,
    BackendModelOption,
    BackendOption,
    DeviceOption,
    ModelOption,
    OfflineOption,
    Source,
    YesOption,
)

if TYPE_CHECKING:
    from openzaya.backends.protocol import Backend, ChatParams, Message

_HELP = """/clear          forget the conversation
/system TEXT    set the system prompt and start anew; without TEXT, remove it
/help           show this
/quit           leave (Ctrl-D does too; Ctrl-C stops a reply)"""
_PANEL = "How it replies"


def chat(
    model: ModelOption = None,
    backend: BackendOption = None,
    backend_model: BackendModelOption = None,
    api_key_env: ApiKeyOption = None,
    device: DeviceOption = None,
    yes: YesOption = False,
    offline: OfflineOption = False,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="A system prompt.", rich_help_panel=_PANEL)] = None,
    thinking: Annotated[
        bool, typer.Option("--thinking/--no-thinking", help="Let the model reason first.", rich_help_panel=_PANEL)
    ] = True,
    max_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Token limit of a reply.", rich_help_panel=_PANEL)
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 always takes the likeliest token.", rich_help_panel=_PANEL)
    ] = 0.6,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, rich_help_panel=_PANEL)] = 0.95,
    seed: Annotated[
        int | None, typer.Option(metavar="S", help="Makes replies repeatable.", rich_help_panel=_PANEL)
    ] = None,
) -> None:
    """Converse with a model in the terminal.

    Reasoning is dimmed; Ctrl-C stops a reply, Ctrl-D leaves.

    In a pipe every line of the input is a turn, and standard output is the replies alone.
    """
    from openzaya.backends.protocol import ChatParams

    source = Source.of(model, backend, backend_model, api_key_env, device)
    if top_p == 0:
        raise InputError("--top-p is 0; it must be above 0 and at most 1")
    source = source.ready(yes=yes, offline=offline)
    params = ChatParams(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, enable_thinking=thinking
    )
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    screen: Screen = TerminalScreen(source.name) if interactive else PipeScreen()
    # One loop for the whole conversation: connections belong to the loop in which they were opened. Its runner turns
    # Ctrl-C into the cancellation of whatever it runs, which closes the stream of a reply at its source.
    with asyncio.Runner() as runner:
        opening = source.open()
        opened = runner.run(_enter(opening))
        try:
            converse(Conversation(opened, params, system), runner, screen)
        finally:
            runner.run(_leave(opening))


async def _enter(opening: Any) -> Backend:
    backend: Backend = await opening.__aenter__()
    return backend


async def _leave(opening: Any) -> None:
    await opening.__aexit__(None, None, None)


@dataclass(slots=True)
class Conversation:
    """What was said so far, and who replies."""

    backend: Backend
    params: ChatParams
    system: str | None = None
    turns: list[Message] = field(default_factory=list)

    @property
    def messages(self) -> list[Message]:
        opening: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*opening, *self.turns]

    async def reply(self, text: str) -> AsyncIterator[tuple[str, str]]:
        """Answer a turn, as pieces of reasoning and content.

        What was said of a reply when it is stopped stays in the conversation; a turn that failed leaves no trace.
        Raises BackendError.
        """
        self.turns.append({"role": "user", "content": text})
        said: list[str] = []
        try:
            stream: Any = self.backend.chat(self.messages, self.params)
            async with aclosing(stream) as deltas:
                async for delta in deltas:
                    said.append(delta.content)
                    if delta.reasoning or delta.content:
                        yield delta.reasoning, delta.content
        finally:
            if "".join(said).strip():
                self.turns.append({"role": "assistant", "content": "".join(said)})
            else:
                self.turns.pop()


class Screen(Protocol):
    """Where a conversation is read from and written to."""

    def read(self) -> str | None:
        """The next turn, None at the end."""
        ...

    def write(self, reasoning: str, content: str) -> None: ...

    def end_reply(self, *, stopped: bool) -> None: ...

    def tell(self, sentence: str) -> None: ...

    def failed(self, error: Exception) -> None:
        """Take note of a reply that failed; raises the error where the conversation cannot go on."""
        ...


def converse(conversation: Conversation, runner: asyncio.Runner, screen: Screen) -> None:
    """Turn after turn until the input ends or the user leaves."""
    from openzaya.backends.protocol import BackendError

    while (text := screen.read()) is not None:
        if text.startswith("/"):
            if not obey(text, conversation, screen):
                return
            continue
        if not text.strip():
            continue
        stopped = False
        try:
            runner.run(_show(conversation, text, screen))
        except KeyboardInterrupt:
            stopped = True
        except BackendError as error:
            screen.failed(error)
            continue
        screen.end_reply(stopped=stopped)


async def _show(conversation: Conversation, text: str, screen: Screen) -> None:
    stream: Any = conversation.reply(text)
    async with aclosing(stream) as pieces:
        async for reasoning, content in pieces:
            screen.write(reasoning, content)


def obey(line: str, conversation: Conversation, screen: Screen) -> bool:
    """Carry out a command; False when it ends the conversation."""
    command, _, rest = line.strip().partition(" ")
    match command:
        case "/quit" | "/exit":
            return False
        case "/clear":
            conversation.turns.clear()
            screen.tell("the conversation is forgotten")
        case "/system":
            conversation.system = rest.strip() or None
            conversation.turns.clear()
            screen.tell("new system prompt" if conversation.system else "no system prompt")
        case "/help":
            screen.tell(_HELP)
        case _:
            screen.tell(f"there is no command {command}; /help lists them (begin with a space to say it)")
    return True


class TerminalScreen:
    """A person at a terminal: line editing, colours, and Ctrl-C that only stops a reply."""

    def __init__(self, name: str) -> None:
        from rich.console import Console

        with suppress(ImportError):
            import readline  # noqa: F401  (input() edits lines and keeps a history once it is imported)
        self._console = Console(highlight=False)
        self._last = ""
        """The style of the piece before: "reasoning", "content", or nothing at the beginning of a reply."""
        self._console.print(f"[bold cyan]{name}[/] [dim]· /help shows commands, Ctrl-D leaves[/]")

    def read(self) -> str | None:
        while True:
            try:
                # The marks tell readline which characters take no room on the line.
                return input("\n\001\x1b[1;36m\002›\001\x1b[0m\002 ")
            except EOFError:
                self._console.print()
                return None
            except KeyboardInterrupt:
                self._console.print("\n[dim](Ctrl-D leaves)[/]", end="")

    def write(self, reasoning: str, content: str) -> None:
        for kind, text in (("reasoning", reasoning), ("content", content)):
            if not text:
                continue
            if kind == "content" and self._last == "reasoning":
                self._console.print()
                self._console.print()
            self._last = kind
            style = "dim" if kind == "reasoning" else None
            self._console.out(for_terminal(text), style=style, highlight=False, end="")

    def end_reply(self, *, stopped: bool) -> None:
        self._console.print("\n[dim](stopped)[/]" if stopped else "")
        self._last = ""

    def tell(self, sentence: str) -> None:
        self._console.print(sentence, style="dim", markup=False)

    def failed(self, error: Exception) -> None:
        self._console.print(f"\n{error}", style="red", markup=False)
        self._last = ""


class PipeScreen:
    """A program at the other end: turns are lines, replies are written as they come, one after another."""

    def read(self) -> str | None:
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None

    def write(self, reasoning: str, content: str) -> None:
        if content:
            print(content, end="", flush=True)

    def end_reply(self, *, stopped: bool) -> None:
        if stopped:
            raise KeyboardInterrupt
        print(flush=True)

    def tell(self, sentence: str) -> None:
        say(sentence)

    def failed(self, error: Exception) -> None:
        raise error
