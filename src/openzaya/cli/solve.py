"""`openzaya solve`: one problem, answered under Markovian RSA."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openzaya.cli.exits import Code, InputError, explain, say
from openzaya.cli.figures import for_terminal
from openzaya.cli.options import (
    ApiKeyOption,
    BackendModelOption,
    BackendOption,
    ModelOption,
    OfflineOption,
    Source,
    YesOption,
)
from openzaya.cli.page import check_place, draw_journal, drawing, journal_for_page

if TYPE_CHECKING:
    from openzaya.mrsa.solution import Solution

ARGUMENTS = "openzaya.arguments"
"""Key of `typer.Context.meta`: the arguments as they were typed."""

_SHAPE = "The shape of the run"
_LIMITS = "Limits and records"


def solve(
    ctx: typer.Context,
    problem: Annotated[
        str | None, typer.Argument(metavar="PROBLEM|-", help="The problem, or - to read it from standard input.")
    ] = None,
    model: ModelOption = None,
    backend: BackendOption = None,
    backend_model: BackendModelOption = None,
    api_key_env: ApiKeyOption = None,
    yes: YesOption = False,
    offline: OfflineOption = False,
    preset: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="light, default, headline, extra, local, tiny, single, majority, rsa, delethink; auto: by source.",
            rich_help_panel=_SHAPE,
        ),
    ] = "auto",
    candidates: Annotated[int | None, typer.Option("-N", help="Candidates a round.", rich_help_panel=_SHAPE)] = None,
    tails: Annotated[
        int | None, typer.Option("-C", help="Tails that each aggregation reads.", rich_help_panel=_SHAPE)
    ] = None,
    rounds: Annotated[
        int | None, typer.Option("-T", help="Rounds of aggregation after the first.", rich_help_panel=_SHAPE)
    ] = None,
    beta: Annotated[
        int | None,
        typer.Option(help="Token limit of a candidate in every round but the last.", rich_help_panel=_SHAPE),
    ] = None,
    tau: Annotated[int | None, typer.Option(help="Tokens of a tail.", rich_help_panel=_SHAPE)] = None,
    final_tokens: Annotated[
        int | None,
        typer.Option(help="Token limit of a candidate in the last round and of a final call.", rich_help_panel=_SHAPE),
    ] = None,
    final_n: Annotated[int | None, typer.Option(help="Candidates of the last round.", rich_help_panel=_SHAPE)] = None,
    tail: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", help="What a tail is cut from: reasoning, hybrid or whole.", rich_help_panel=_SHAPE
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", help="Of the problem: auto, math, code, choice or general.", rich_help_panel=_SHAPE
        ),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Wordings of your own, in TOML.", rich_help_panel=_SHAPE)
    ] = None,
    select: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY", help="Who answers in the end: auto, final, majority or random.", rich_help_panel=_SHAPE
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="S", help="Decides every draw.", rich_help_panel=_SHAPE)] = 0,
    max_total_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="End after so many generated tokens.", rich_help_panel=_LIMITS)
    ] = None,
    deadline: Annotated[
        float | None, typer.Option(metavar="S", help="End after so many seconds.", rich_help_panel=_LIMITS)
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep every rollout in this new file.", rich_help_panel=_LIMITS),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Go on with the run of this journal.", rich_help_panel=_LIMITS),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw the run in this file, for any browser. With --resume and without PROBLEM nothing is run.",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the answer.", rich_help_panel=_LIMITS)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.", rich_help_panel=_LIMITS)] = False,
) -> None:
    """Solve one problem under Markovian RSA and print the answer.

    Rounds of candidates work on it, each round after the first reading only the tails of the one before. Progress goes
    to standard error, and standard output is the answer alone. Exit codes: 0 answered, 2 bad input, 3 the backend
    failed, 4 a budget or deadline ended it (the best answer so far is printed), 130 interrupted.
    """
    if html is not None:
        check_place(html)
    if problem is None:
        raise typer.Exit(draw_again(resume, html, as_json=as_json))
    question = read_problem(problem)
    source = Source.of(model, backend, backend_model, api_key_env).ready(yes=yes, offline=offline, quiet=quiet)
    from openzaya.api import solve as solve_problem
    from openzaya.cli.progress import follow

    kept = resume or journal
    try:
        with (
            journal_for_page(html, kept) as drawn,
            follow(question, source.name, sys.stderr, quiet=quiet) as on_event,
            drawing(html, drawn),
        ):
            solution = solve_problem(
                question,
                **source.for_api(),
                preset=preset,
                seed=seed,
                prompts=prompts,
                on_event=on_event,
                journal=journal if kept is not None else drawn,
                resume=resume,
                candidates=candidates,
                tails=tails,
                rounds=rounds,
                beta=beta,
                tau=tau,
                final_tokens=final_tokens,
                final_n=final_n,
                tail=tail,
                task=task,
                select=select,
                max_total_tokens=max_total_tokens,
                deadline=deadline,
            )
    except (Exception, KeyboardInterrupt) as error:
        if explain(error)[1] in (Code.INTERRUPTED, Code.BACKEND_FAILED):
            error.add_note(how_to_go_on(ctx.meta.get(ARGUMENTS, ()), kept))
        raise
    if kept is None:
        solution = replace(solution, journal=None)
    raise typer.Exit(print_solution(solution, as_json=as_json))


def draw_again(journal: Path | None, page: Path | None, *, as_json: bool) -> Code:
    """Draw a kept run without running anything, and print what it came to."""
    if journal is None or page is None:
        raise InputError(
            "PROBLEM is missing; give the text of a problem, or - to read it from standard input, or --resume JOURNAL "
            "and --html FILE to draw a run that is kept"
        )
    solution = draw_journal(journal, page)
    if solution is not None:
        return print_solution(solution, as_json=as_json)
    say(f"openzaya: the run of {journal} had not ended; {page} shows how far it got, and PROBLEM would go on with it")
    return Code.ENDED_EARLY


def read_problem(problem: str) -> str:
    """The text of the problem, from the input where it is `-`; raises InputError where it is empty."""
    text = sys.stdin.read() if problem == "-" else problem
    if not text.strip():
        where = "standard input" if problem == "-" else "the argument PROBLEM"
        raise InputError(f"the problem is empty; give the text of a problem in {where}")
    return text.strip("\n") if problem == "-" else text


def print_solution(solution: Solution, *, as_json: bool) -> Code:
    """Print the result on standard output and what a person should know beside it; returns the exit code."""
    if as_json:
        print(json.dumps(solution.as_json(), ensure_ascii=False), flush=True)
    elif solution.text.strip():
        text = solution.text.strip()
        print(for_terminal(text) if sys.stdout.isatty() else text, flush=True)
    if solution.finish_reason != "answered":
        best = "the answer is the best so far" if solution.text.strip() else "no candidate had answered yet"
        say(f"openzaya: the {solution.finish_reason} ended the run; {best}")
        return Code.ENDED_EARLY
    if not solution.text.strip():
        say("openzaya: no candidate answered within its token limit; raise --final-tokens, or --beta with it")
        return Code.ENDED_EARLY
    return Code.ANSWERED


def how_to_go_on(arguments: Sequence[str], kept: Path | None) -> str:
    """What to tell after an interruption: the command that resumes the run from the journal `kept`."""
    if kept is None or not kept.is_file():
        return "nothing was kept of this run; --journal FILE keeps every finished rollout for --resume FILE"
    command = shlex.join(["openzaya", *_with_resume(arguments, kept)])
    return f"the journal {kept} is whole; go on with: {command}"


def _with_resume(arguments: Sequence[str], kept: Path) -> list[str]:
    """The arguments with `--resume FILE` in place of `--journal FILE`."""
    found: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in ("--journal", "--resume"):
            skip = True
        elif not argument.startswith(("--journal=", "--resume=")):
            found.append(argument)
    place = found.index("solve") + 1 if "solve" in found else 0
    return [*found[:place], "--resume", str(kept), *found[place:]]
