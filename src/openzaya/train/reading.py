"""The sources of a phase, opened: problems of its mixture, and the shards of its corpora, written where they lack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from openzaya.data.order import Interleaving
from openzaya.data.rollouts import Speaker
from openzaya.data.shard_batches import ShardBatches
from openzaya.data.tokenising import write_shards
from openzaya.train.batches import ProblemSource, check_rows
from openzaya.train.config import PhaseRecipe, TrainConfig
from openzaya.train.schedule import total_steps
from openzaya.train.sources import BatchSource, Together


@dataclass(frozen=True, slots=True)
class Reading:
    """What a phase reads; `problems` apart too, because a phase refreshes their pool of rollouts."""

    source: BatchSource
    problems: ProblemSource | None


def open_reading(
    config: TrainConfig,
    phase: PhaseRecipe,
    speaker: Speaker,
    folder: Path,
    report: Callable[[str], None],
    rank: int = 0,
    ranks: int = 1,
) -> Reading:
    """Open what `rank` of a phase of the run in `folder` reads, having written and laid out what was not before.

    Raises ValueError where a row is too short for the problems, or a corpus cannot be read.
    """
    parts: list[BatchSource] = []
    problems = None
    if phase.problem_share:
        mixture = config.mixture if phase.mixture is None else phase.mixture
        check_rows(mixture, speaker, phase.row)
        problems = ProblemSource(mixture, speaker, phase, config.seed, rank, ranks)
        parts.append(problems)
    if phase.corpora and phase.problem_share < 1:
        shards = {
            name: write_shards(
                name,
                config.corpora[name],
                speaker,
                Path(config.shards or folder / "corpora") / name,
                workers=config.threads or 1,
                report=lambda progress: report(str(progress)),
            )
            for name in phase.corpora
        }
        parts.append(
            ShardBatches.open(
                shards,
                phase.corpora,
                row=phase.row,
                batch_tokens=corpora_tokens(phase),
                overlong=phase.overlong,
                seed=config.seed,
                rank=rank,
                ranks=ranks,
                microbatch_tokens=phase.microbatch_tokens,
                read_before=rows_read_before(config, phase),
                report=report,
            )
        )
    return Reading(parts[0] if len(parts) == 1 else Together(parts), problems)


def corpora_tokens(phase: PhaseRecipe) -> int:
    """Tokens of a step that come from corpora."""
    return round(phase.batch_tokens * (1 - phase.problem_share))


def rows_read_before(config: TrainConfig, phase: PhaseRecipe) -> dict[str, int]:
    """Rows of each corpus that the phases on the way to this one have read, as far as they laid them out alike."""
    by_name = {earlier.name: earlier for earlier in config.phases}
    read: dict[str, int] = {}
    at = phase
    while (start := config.start_of(at)) in by_name:
        at = by_name[start]
        if at.corpora and (at.row, at.overlong) == (phase.row, phase.overlong):
            rows = total_steps(at) * max(1, corpora_tokens(at) // at.row)
            for name, count in Interleaving(at.corpora).counts(rows).items():
                read[name] = read.get(name, 0) + count
    return read
