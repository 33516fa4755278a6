"""`openzaya bench`: how fast this machine runs a model, in ratios to what was measured beside it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openzaya.cli.byte_progress import follow_bytes
from openzaya.cli.exits import InputError, say
from openzaya.cli.figures import byte_size, duration, rate
from openzaya.cli.options import BUNDLED
from openzaya.cli.solve import ARGUMENTS

if TYPE_CHECKING:
    from rich.console import Console

    from openzaya.bench.subject import Subject
    from openzaya.model.quantised.scheme import Scheme

_SECONDS_BETWEEN_LINES = 10.0
_PLAIN = "bfloat16"
_WHERE = "The model and where it runs"

bench = typer.Typer(
    name="bench", no_args_is_help=True, help="Measure speed, each figure a ratio to a limit measured in the same run."
)

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder, quantised or not, a hub id, tiny, or a shape (zaya1-8b, zaya1-74b): random weights are made.",
    ),
]
SchemeOption = Annotated[
    str | None,
    typer.Option(
        "--scheme",
        metavar="w4|w8|bfloat16",
        help="How a shape's random weights are kept (w4 unless given); a folder is quantised for the run.",
        rich_help_panel=_WHERE,
    ),
]
GroupOption = Annotated[
    int | None,
    typer.Option("--group", metavar="32|128", help="Columns that share a scale, in w4.", rich_help_panel=_WHERE),
]
KeepOption = Annotated[
    Path | None,
    typer.Option("--keep", metavar="DIR", help="Keep random weights here, and use them again.", rich_help_panel=_WHERE),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", help="Threads; measured in the core where not given.", rich_help_panel=_WHERE),
]
VariantOption = Annotated[
    str | None,
    typer.Option("--variant", help="The core's instruction set; the best where not given.", rich_help_panel=_WHERE),
]
KvOption = Annotated[
    str,
    typer.Option(
        "--kv-dtype", metavar="float32|float16|int8", help="Keys and values in the core.", rich_help_panel=_WHERE
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="cpu, or what torch calls an accelerator: cuda.", rich_help_panel=_WHERE)
]
RepeatsOption = Annotated[int, typer.Option("--repeats", help="Rounds; figures are their medians.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
SaveOption = Annotated[
    Path | None,
    typer.Option("--save", metavar="FILE", help="Keep the object with machine, commit and command in this file."),
]


@bench.command("decode")
def decode(
    ctx: typer.Context,
    model: ModelArgument = BUNDLED,
    rows: Annotated[
        str, typer.Option(metavar="N,N…", help="Sequences that decode together, a measurement for each number.")
    ] = "1,16,64",
    prompt: Annotated[
        int, typer.Option(metavar="N", help="Tokens before them, and of the prompt that is timed.")
    ] = 512,
    context: Annotated[
        str, typer.Option(metavar="N,N…", help="Longer contexts at which the fewest rows are measured too.")
    ] = "",
    competing: Annotated[int, typer.Option(metavar="N", help="Measure beside so many busy processes as well.")] = 0,
    repeats: RepeatsOption = 7,
    scheme: SchemeOption = None,
    group: GroupOption = None,
    keep: KeepOption = None,
    threads: ThreadsOption = None,
    variant: VariantOption = None,
    kv_dtype: KvOption = "auto",
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
    save: SaveOption = None,
) -> None:
    """Measure decoding and prompts: tokens a second, and the share of memory bandwidth that this is.

    A read of memory with the same threads goes before and after every measurement. A case of each kind is measured in
    every round; printed are medians, with the lowest and the highest round.
    """
    from openzaya.bench.decode import Settings, measure_decode
    from openzaya.bench.record import machine

    facts: dict[str, Any] = {"machine": machine()}
    settings = Settings(
        rows=_numbers("--rows", rows),
        prompt=prompt,
        contexts=_numbers("--context", context),
        repeats=repeats,
        competing=competing,
    )
    with _opened(model, scheme, group, keep, threads, variant, kv_dtype, device) as subject:
        with follow_rounds("decode") as progress:
            figures = measure_decode(subject, settings, progress)
        facts |= {"model": {"name": model, **subject.facts}, "settings": asdict(settings), **figures}
    finish(ctx, "decode", facts, as_json=as_json, save=save, show=_show_decode)


@bench.command("rollouts")
def rollouts(
    ctx: typer.Context,
    model: ModelArgument = BUNDLED,
    count: Annotated[int, typer.Option("--rollouts", metavar="N", help="Rollouts of one prompt.")] = 16,
    prompt: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of that prompt: 4,096, or what the context leaves.")
    ] = None,
    independent: Annotated[
        int,
        typer.Option(metavar="N", help="Prompts computed each by itself, to stand for as many as there are rollouts."),
    ] = 1,
    candidates: Annotated[int, typer.Option("-N", help="Candidates of the aggregation round.")] = 16,
    tails: Annotated[int, typer.Option("-C", help="Tails that each of them reads.")] = 4,
    tail: Annotated[int, typer.Option("--tau", metavar="N", help="Tokens of a tail, and of the question.")] = 96,
    solve: Annotated[bool, typer.Option(help="Time `openzaya solve` with the bundled model too.")] = True,
    repeats: RepeatsOption = 3,
    scheme: SchemeOption = None,
    group: GroupOption = None,
    keep: KeepOption = None,
    threads: ThreadsOption = None,
    variant: VariantOption = None,
    kv_dtype: KvOption = "auto",
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
    save: SaveOption = None,
) -> None:
    """Measure what sharing saves: rollouts of one prompt, a round of aggregations, and a whole `solve`.

    Each is the time until all sequences have their first token, against the same without sharing in the same round.
    """
    from openzaya.bench.record import machine
    from openzaya.bench.rollouts import Settings, measure_rollouts

    facts: dict[str, Any] = {"machine": machine()}
    with _opened(model, scheme, group, keep, threads, variant, kv_dtype, device) as subject:
        settings = Settings(
            rollouts=count,
            prompt=min(4096, subject.config.max_position_embeddings - 1) if prompt is None else prompt,
            independent=independent,
            candidates=candidates,
            tails=tails,
            question=tail,
            tail=tail,
            repeats=repeats,
            solve=solve,
        )
        with follow_rounds("rollouts") as progress:
            figures = measure_rollouts(subject, settings, progress)
        facts |= {"model": {"name": model, **subject.facts}, "settings": asdict(settings), **figures}
    finish(ctx, "rollouts", facts, as_json=as_json, save=save, show=_show_rollouts)


@bench.command("orchestrate")
def orchestrate(
    ctx: typer.Context,
    jobs: Annotated[int, typer.Option("--jobs", metavar="N", help="Requests to the service at once.")] = 64,
    preset: Annotated[str, typer.Option("--preset", metavar="NAME", help="What each of them runs.")] = "headline",
    chunks: Annotated[int, typer.Option("--chunks", metavar="N", help="Pieces in the stream of a rollout.")] = 512,
    at_once: Annotated[int, typer.Option("--at-once", metavar="N", help="Rollouts open at the source.")] = 256,
    as_json: JsonOption = False,
    save: SaveOption = None,
) -> None:
    """Measure what the reasoning service itself costs: by rollout, by streamed piece, and in memory by request.

    The source is a process of its own that sends prepared streams, so that nothing is generated. Beside it stands what
    it costs to read the same streams without a service.
    """
    from openzaya.bench.record import machine
    from openzaya.serve.load import Settings, measure

    facts: dict[str, Any] = {"machine": machine()}
    try:
        settings = Settings(jobs=jobs, preset=preset, chunks=chunks, at_once=at_once)
        with follow_rounds("orchestrate") as progress:
            figures = measure(settings, progress)
    except ValueError as error:
        raise InputError(str(error)) from error
    facts |= {"settings": asdict(settings), **figures}
    finish(ctx, "orchestrate", facts, as_json=as_json, save=save, show=_show_orchestrate)


@contextmanager
def _opened(
    model: str,
    scheme: str | None,
    group: int | None,
    keep: Path | None,
    threads: int | None,
    variant: str | None,
    kv_dtype: str,
    device: str,
) -> Iterator[Subject]:
    """What the options name, ready to be measured."""
    from openzaya.bench.models import SHAPES, model_for
    from openzaya.bench.subject import open_subject
    from openzaya.engine.core.products import CoreUnavailable

    chosen = _scheme(scheme or ("w4" if group or model in SHAPES else None), group)
    with ExitStack() as stack:
        with follow_bytes(f"writing {model} in {chosen}" if chosen else f"opening {model}") as progress:
            found = stack.enter_context(model_for(model, chosen, keep=keep, device=device, progress=progress))
        try:
            opened = open_subject(found, threads=threads, variant=variant, kv_dtype=kv_dtype, device=device)
            subject = stack.enter_context(opened)
        except CoreUnavailable as error:
            raise InputError(str(error)) from error
        yield subject


def _scheme(name: str | None, group: int | None) -> Scheme | None:
    from openzaya.model.quantised.scheme import scheme_of

    if name in (None, _PLAIN) and group is None:
        return None
    try:
        return scheme_of(name or "w4", group)
    except ValueError as error:
        raise InputError(f"--scheme and --group: {error}; a shape may also be {_PLAIN}") from None


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise InputError(f"{option} is {text!r}; give whole numbers with commas between, such as 1,16,64") from None


# ---- following and showing ----


@contextmanager
def follow_rounds(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """The callable that takes measurements done and in all, shown until the block ends: a bar on a terminal, else a
    line every ten seconds."""
    if not sys.stderr.isatty():
        yield _lines(title)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(title), BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task("preparing", total=None)
        yield lambda done, total, name: progress.update(task, completed=done, total=total, description=name)


def _lines(title: str, clock: Callable[[], float] = time.monotonic) -> Callable[[int, int, str], None]:
    began = last = clock()

    def show(done: int, total: int, name: str) -> None:
        nonlocal last
        now = clock()
        if done and now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            left = duration((now - began) * (total - done) / done)
            say(f"{title}: {done} of {total} measurements, about {left} left; next: {name}")

    return show


def finish(
    ctx: typer.Context,
    name: str,
    facts: dict[str, Any],
    *,
    as_json: bool,
    save: Path | None,
    show: Callable[[dict[str, Any]], None],
) -> None:
    """Put a measurement on record: to a file where one is given, and to standard output as JSON or as `show` does."""
    from openzaya.bench.record import record
    from openzaya.bench.record import save as save_report

    report = record(name, ["openzaya", *ctx.meta.get(ARGUMENTS, ())], facts)
    if save is not None:
        save_report(report, save)
    if as_json:
        print(json.dumps(report))
    else:
        show(report)


def _show_decode(report: dict[str, Any]) -> None:
    from rich.table import Table

    console = console_for_figures()
    _say_what_ran(console, report)
    table = Table(box=None, padding=(0, 2))
    competing = report["settings"]["competing"]
    for column in ("rows", "context", "tokens/s", "to one row", "bytes a step", "share of bandwidth"):
        table.add_column(column, justify="right")
    if competing:
        table.add_column(f"beside {competing} busy", justify="right")
    for row in report["decode"]:
        cells = [
            f"{row['rows']}", f"{row['context']:,}", spread(row["tokens_a_second"]), spread(row["ratio_to_one_row"]),
            byte_size(row["bytes_a_step"]["total"]), spread(row["share_of_bandwidth"]),
        ]  # fmt: skip
        table.add_row(*cells, *([spread(row["competing"]["ratio_to_quiet"])] if competing else []))
    console.print(table)
    for row in report["decode"]:
        if stages := row.get("milliseconds_by_stage"):
            whole = sum(stages.values())
            parts = ", ".join(f"{name} {spent / whole:.0%}" for name, spent in stages.items() if spent > 0.02 * whole)
            console.print(f"{row['rows']} at {row['context']:,}: {whole:.1f} ms in the core, {parts}", soft_wrap=True)
    prefill = report["prefill"]
    console.print(
        f"a prompt of {prefill['tokens']:,} tokens: {spread(prefill['tokens_a_second'])} tokens/s, "
        f"{spread(prefill['ratio_to_one_row'])} times one row"
    )


def _show_rollouts(report: dict[str, Any]) -> None:
    console, settings = console_for_figures(), report["settings"]
    _say_what_ran(console, report)
    shared, round_ = report["rollouts"], report["aggregation"]
    console.print(
        f"{settings['rollouts']} rollouts of a prompt of {settings['prompt']:,} tokens: "
        f"{seconds(shared['seconds'])} to their first tokens, {spread(shared['times_faster'])} times faster than "
        f"independent prompts ({shared['computed_of_the_independent']} of them measured)"
    )
    console.print(
        f"a round of N {settings['candidates']}, C {settings['tails']}, "
        f"{round_['tokens_of_a_prompt']:,} tokens a prompt: "
        f"{seconds(round_['seconds'])}, {spread(round_['times_faster'])} times faster than without sharing "
        f"({round_['tokens_computed']['sharing']:,} of {round_['tokens_computed']['without']:,} tokens computed)"
    )
    if "solve" in report:
        found = report["solve"]
        console.print(
            f"openzaya solve, zaya1-tiny, from the start of the process to the answer: {seconds(found['seconds'])}, "
            f"{spread(found['ratio_to_importing_torch'])} times an import of torch"
        )


def _show_orchestrate(report: dict[str, Any]) -> None:
    console, settings, memory = console_for_figures(), report["settings"], report["memory"]
    console.print(
        f"{settings['jobs']} requests of the preset {settings['preset']}: {report['rollouts']:,} rollouts of "
        f"{settings['chunks']} pieces in {duration(report['seconds'])}"
    )
    console.print(
        f"the service's own time: {report['milliseconds_a_rollout']:.1f} ms a rollout, "
        f"{report['microseconds_a_chunk']:.0f} µs a piece, {report['times_reading_alone']:.1f} times reading alone "
        f"({report['reading_alone']['microseconds_a_chunk']:.0f} µs)"
    )
    console.print(
        f"memory: {byte_size(memory['bytes_a_job'])} a request at its peak, whose tails (N·τ) are "
        f"{memory['tokens_of_tails_a_job']:,} tokens: {memory['bytes_a_token_of_tails']:.0f} bytes a token; "
        f"{byte_size(memory['bytes_in_the_store_a_job'])} in the store"
    )


def seconds(figure: dict[str, float]) -> str:
    """A duration with the shortest and the longest round in brackets."""
    median, low, high = (duration(figure[name]) for name in ("median", "low", "high"))
    return f"{median} [{low}, {high}]"


def console_for_figures() -> Console:
    """Wide where it is no terminal, so that a table in a file keeps its rows."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def _say_what_ran(console: Console, report: dict[str, Any]) -> None:
    model, probe = report["model"], report["probe"]
    console.print(f"{model['name']} in {model['scheme']}, {model['executor']}, {model['threads']} threads")
    console.print(f"probe: {probe['what']}: {spread(probe['gigabytes_a_second'])} GB/s")


def spread(figure: dict[str, float] | None) -> str:
    """A figure as people read it: the median, and in brackets the lowest and the highest round."""
    if figure is None:
        return "-"
    median, low, high = (rate(figure[name]) if figure[name] >= 10 else f"{figure[name]:.2f}" for name in figure)
    return f"{median} [{low}, {high}]"
