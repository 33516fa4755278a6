"""The program `openzaya`: its verbs, its global options, and the end of every failure in one sentence."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import openzaya
from openzaya.cli import chat, convert, eval, info, solve, train
from openzaya.cli.exits import leave


class Verbs(TyperGroup):
    """The group of verbs; failures of any of them leave as one sentence and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[solve.ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            if _belongs_to_the_parser(error) or ctx.params.get("debug"):
                raise
            raise leave(error) from None


def _belongs_to_the_parser(error: BaseException) -> bool:
    """Whether typer itself handles it: usage errors, a wanted exit, and a reader of our output that has left."""
    return isinstance(error, typer.Exit | typer.Abort | BrokenPipeError) or hasattr(error, "exit_code")


app = typer.Typer(
    cls=Verbs,
    name="openzaya",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"openzaya {openzaya.__version__}")
        raise typer.Exit


@app.callback()
def openzaya_program(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """ZAYA1 in one package: solve problems with Markovian RSA, converse, evaluate, train and convert models."""


for module in (solve.solve, chat.chat, eval.eval_, train.train, convert.convert, info.info):
    app.command(module.__name__.rstrip("_"))(module)


def main() -> None:
    """The entry point of the console script."""
    if sys.version_info < (3, 11):
        sys.exit("openzaya needs Python 3.11 or newer")
    app()
