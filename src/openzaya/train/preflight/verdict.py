"""What is wrong with the machines, from their figures: pure functions, the same on every rank."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from openzaya.train.plan.cluster import Cluster
from openzaya.train.preflight.links import LinkFigures
from openzaya.train.preflight.ranks import RankFigures, by_host

SLOWER_THAN_OTHERS = 0.9
"""Share of the median product speed below which a rank is a straggler: every step waits for the slowest."""
SLOWER_THAN_DESCRIBED = 0.7
"""Share of the described product speed."""
SLOWER_LINKS = 0.5
"""Share of the described links: one broken cable of eight shows, protocol overhead does not."""
CLOCK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding."""

    subject: str
    """ "ranks", "products", "links", "disks" or "clocks"."""
    host: str | None
    sentence: str
    stops: bool
    """Whether a run should not be started; else it is worth a look."""


def judge(
    figures: Sequence[RankFigures], links: Sequence[LinkFigures], cluster: Cluster | None, needed_bytes: int
) -> list[Problem]:
    """Everything that is wrong, what stops a run first; `needed_bytes` is what the run will keep in its folder."""
    found = [
        *_ranks(figures, cluster),
        *_products(figures, cluster),
        *_links(links),
        *_disks(figures, needed_bytes),
        *_clocks(figures),
    ]
    return sorted(found, key=lambda problem: not problem.stops)


def _ranks(figures: Sequence[RankFigures], cluster: Cluster | None) -> Iterator[Problem]:
    hosts = by_host(figures)
    for what, values in (
        ("torch", {each.torch for each in figures}),
        ("device", {each.device for each in figures}),
    ):
        if len(values) > 1:
            usual = statistics.mode(getattr(each, what) for each in figures)
            for host, ranks in hosts.items():
                if others := sorted({getattr(each, what) for each in ranks} - {usual}):
                    sentence = f"{what} is {', '.join(others)} here and {usual} elsewhere"
                    yield Problem("ranks", host, sentence, stops=True)
    sizes = {host: len(ranks) for host, ranks in hosts.items()}
    if len(set(sizes.values())) > 1:
        usual_size = statistics.mode(sizes.values())
        for host, size in sizes.items():
            if size != usual_size:
                yield Problem("ranks", host, f"{size} ranks here and {usual_size} elsewhere", stops=True)
    if cluster is not None and len(figures) != cluster.gpus:
        sentence = f"{len(figures)} ranks, and {cluster.name!r} has {cluster.gpus} GPUs"
        yield Problem("ranks", None, sentence, stops=False)


def _products(figures: Sequence[RankFigures], cluster: Cluster | None) -> Iterator[Problem]:
    median = statistics.median(each.matmul for each in figures)
    for each in figures:
        if each.matmul < SLOWER_THAN_OTHERS * median:
            share = each.matmul / median
            yield Problem("products", each.host, f"rank {each.rank} does {share:.0%} of the median rank", stops=True)
    if cluster is not None and median < SLOWER_THAN_DESCRIBED * cluster.gpu.matmul:
        sentence = f"{median / 1e12:.3g} TFLOP/s, and {cluster.name!r} says {cluster.gpu.matmul / 1e12:.3g}"
        yield Problem("products", None, sentence, stops=False)


def _links(links: Sequence[LinkFigures]) -> Iterator[Problem]:
    for each in links:
        if each.expected is not None and each.bandwidth < SLOWER_LINKS * each.expected:
            share = each.bandwidth / each.expected
            sentence = f"{each.what} of {each.ranks} ranks reaches {share:.0%} of the described links"
            yield Problem("links", None, sentence, stops=True)


def _disks(figures: Sequence[RankFigures], needed_bytes: int) -> Iterator[Problem]:
    for each in figures:
        if each.disk is None:
            continue
        if not each.disk.shared:
            sentence = "the run's folder is not the one that rank 0 sees; states need a folder that all hosts share"
            yield Problem("disks", each.host, sentence, stops=True)
        if each.disk.free < needed_bytes:
            sentence = f"{each.disk.free / 1e9:,.1f} GB are free and the run keeps up to {needed_bytes / 1e9:,.1f} GB"
            yield Problem("disks", each.host, sentence, stops=True)


def _clocks(figures: Sequence[RankFigures]) -> Iterator[Problem]:
    for each in figures:
        if each.clock_offset is not None and abs(each.clock_offset) > CLOCK_SECONDS:
            direction = "ahead of" if each.clock_offset > 0 else "behind"
            sentence = f"the clock is {abs(each.clock_offset):.1f} s {direction} rank 0's"
            yield Problem("clocks", each.host, sentence, stops=False)
