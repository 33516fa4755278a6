"""The program `openzaya`: its verbs, its global options, and the end of every failure in one sentence."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import openzaya
from openzaya.cli.bench import bench
from openzaya.cli.bench_train import train as bench_train
from openzaya.cli.chat import chat
from openzaya.cli.convert import convert
from openzaya.cli.eval import evaluate
from openzaya.cli.exits import leave
from openzaya.cli.info import info
from openzaya.cli.quantize import quantize
from openzaya.cli.serve import serve
from openzaya.cli.solve import ARGUMENTS, solve
from openzaya.cli.train import train


class Verbs(TyperGroup):
    """The group of verbs; a failure of any of them leaves as one sentence and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            if _belongs_to_the_parser(error):
                raise
            raise leave(error, debug=ctx.params["debug"]) from None


def _belongs_to_the_parser(error: BaseException) -> bool:
    """Whether typer itself ends the program: wrong usage, a wanted exit, or a reader of our output that has left."""
    return hasattr(error, "exit_code") or isinstance(error, typer.Abort | BrokenPipeError)


app = typer.Typer(
    cls=Verbs,
    name="openzaya",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"openzaya {openzaya.__version__}")
        raise typer.Exit


@app.callback()
def program(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """ZAYA1 in one package: solve problems with Markovian RSA, converse, evaluate, train and convert models."""


app.command("solve")(solve)
app.command("serve")(serve)
app.command("chat")(chat)
app.command("eval")(evaluate)
app.command("train")(train)
app.command("convert")(convert)
app.command("quantize")(quantize)
bench.command("train")(bench_train)
app.add_typer(bench, name="bench")
app.command("info")(info)


def main() -> None:
    """The entry point of the console script."""
    app()
