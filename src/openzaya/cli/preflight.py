"""What `openzaya train --preflight` prints: one table over all ranks, and what is wrong by host."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from openzaya.cli.exits import Code, say
from openzaya.cli.figures import byte_size, flops
from openzaya.cli.train_plan import shape_of

if TYPE_CHECKING:
    from openzaya.train.config import TrainConfig
    from openzaya.train.plan.cluster import Cluster
    from openzaya.train.preflight.ranks import DiskFigures
    from openzaya.train.preflight.run import Report


def preflight(config: TrainConfig, folder: Path, cluster: Cluster | None, *, as_json: bool) -> None:
    """Check the machines of this launch and print what was found from rank 0.

    Ends the program with code 3 where a run should not be started.
    """
    import torch

    from openzaya.train.preflight.run import run_preflight

    report = run_preflight(
        folder, needed_bytes=_needed_bytes(config), dtype=getattr(torch, config.dtype), device=config.device,
        cluster=cluster,
    )  # fmt: skip
    if report.speaks:
        if as_json:
            print(json.dumps({**asdict(report), "stops": report.stops}))
        else:
            _print_table(report)
        sys.stdout.flush()
        for problem in report.problems:
            where = "" if problem.host is None else f" on {problem.host}"
            say(f"{'stop' if problem.stops else 'look'}: {problem.subject}{where}: {problem.sentence}")
    if report.stops:
        raise typer.Exit(Code.BACKEND_FAILED)


def _needed_bytes(config: TrainConfig) -> int:
    """What a run keeps at most: the states of the phase that runs, an end and a float32 checkpoint for each phase."""
    from openzaya.train.plan.parameters import parameters

    counts, phases = parameters(shape_of(config)), len(config.phases)
    # One more than are kept: the one that is being written.
    return counts.state_bytes * (config.keep_last + 1 + phases) + 4 * counts.total * phases


def _print_table(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for column, justify in (("", "left"), ("lowest", "right"), ("median", "right"), ("highest", "right"), ("", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for row in _rows(report):
        table.add_row(*row)
    console.print(table)


def _rows(report: Report) -> list[tuple[str, ...]]:
    ranks = report.ranks
    hosts = len({each.host for each in ranks})
    rows: list[tuple[str, ...]] = [
        ("ranks", "", f"{len(ranks):,}", "", f"{hosts} hosts, {ranks[0].device}, torch {ranks[0].torch}")
    ]
    slowest = min(ranks, key=lambda each: each.matmul)
    rows.append(
        _spread(
            "large products", [each.matmul for each in ranks], lambda value: f"{flops(value)}/s",
            f"slowest: rank {slowest.rank} on {slowest.host}",
        )
    )  # fmt: skip
    if free := [each.memory_free for each in ranks if each.memory_free is not None]:
        rows.append(_spread("memory free", free, byte_size, ""))
    for link in report.links:
        described = "" if link.expected is None else f"described: {byte_size(link.expected)}/s"
        rows.append((f"{link.what}, {link.ranks} ranks", "", f"{byte_size(link.bandwidth)}/s", "", described))
    rows += _disk_rows(report, [each.disk for each in ranks if each.disk is not None])
    offsets = [each.clock_offset for each in ranks if each.clock_offset is not None]
    rows.append(_spread("clock against rank 0", offsets, lambda value: f"{1000 * value:.1f} ms", ""))
    stops = sum(problem.stops for problem in report.problems)
    verdict = "ready" if not report.problems else f"{stops} to stop for, {len(report.problems) - stops} to look at"
    return [*rows, ("verdict", "", verdict, "", "")]


def _disk_rows(report: Report, disks: Sequence[DiskFigures]) -> list[tuple[str, ...]]:
    return [
        _spread("disk, written", [disk.write for disk in disks], lambda value: f"{byte_size(value)}/s", "a host"),
        _spread("disk, read", [disk.read for disk in disks], lambda value: f"{byte_size(value)}/s", "a host"),
        _spread("fsync", [disk.fsync for disk in disks], lambda value: f"{1000 * value:.2f} ms", ""),
        _spread("disk, free", [disk.free for disk in disks], byte_size,
                f"the run keeps up to {byte_size(report.needed_bytes)}"),
    ]  # fmt: skip


def _spread(name: str, values: Sequence[float], words: Callable[[float], str], note: str) -> tuple[str, ...]:
    """A row with the lowest, the median and the highest of `values`."""
    return (name, words(min(values)), words(statistics.median(values)), words(max(values)), note)
