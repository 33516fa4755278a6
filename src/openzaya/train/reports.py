"""What a run says of itself: a report a few seconds, a line of `log.jsonl` each, curves where a board is asked for."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from openzaya.train.config import LoggingRecipe


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one report line says."""

    phase: str
    step: int
    steps: int
    loss: float
    """Mean negative log-likelihood of a learned token, in nats."""
    gradient_norm: float
    load_entropy: float
    """Mean over layers."""
    tokens_per_second: float
    seconds_left: float
    """Of this phase."""
    rate: float
    """Of the optimizer's."""
    utilisation: float | None
    """Model operations a second over those of a large matrix product, measured in this run."""
    load_entropies: tuple[float, ...]


class Board(Protocol):
    """Where curves are watched while a run goes on."""

    def add(self, figures: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Curves in a folder that `tensorboard --logdir` reads."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What a killed run wrote beyond the state that it goes on from is dropped from the curves.
        self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def add(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """Curves at Weights & Biases; a run that goes on continues its curve."""

    def __init__(self, project: str, name: str, folder: Path) -> None:
        try:
            import wandb
        except ModuleNotFoundError:
            raise ValueError(
                f"logging.wandb_project is {project!r} and wandb is not installed; pip install wandb, or remove the key"
            ) from None
        self._run = wandb.init(project=project, name=name, id=name, dir=str(folder), resume="allow")

    def add(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()


def boards(recipe: LoggingRecipe, folder: Path, phase: str, first_step: int) -> list[Board]:
    """The boards that a recipe asks for and that there are; raises ValueError where W&B is asked for and missing."""
    found: list[Board] = []
    if recipe.tensorboard:
        with contextlib.suppress(ModuleNotFoundError):
            found.append(TensorBoard(folder / "tensorboard" / phase, first_step))
    if recipe.wandb_project is not None:
        found.append(WeightsAndBiases(recipe.wandb_project, f"{folder.name}-{phase}", folder))
    return found


def curves_of(report: StepReport) -> dict[str, float]:
    """The figures of a report that make curves, by name."""
    figures = asdict(report)
    layers = {f"load_entropy/layer{layer}": entropy for layer, entropy in enumerate(figures.pop("load_entropies"))}
    apart = ("phase", "step", "steps", "seconds_left")
    return {name: float(value) for name, value in figures.items() if name not in apart and value is not None} | layers


def append_line(file: Path, fields: Mapping[str, Any]) -> None:
    """Add one JSON object to a log; a line that a kill tore is ended first, so that it spoils no other."""
    with file.open("a+b") as log:
        if log.tell():
            log.seek(-1, 2)
            if log.read() != b"\n":
                log.write(b"\n")
        log.write(json.dumps(fields).encode() + b"\n")


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a log, less torn lines."""
    found = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            fields = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(fields, dict):
            found.append(fields)
    return found


@dataclass(slots=True)
class PhaseLog:
    """What a log has of one phase, by step; of a step that was done twice, the later line."""

    name: str
    steps: dict[int, dict[str, Any]] = field(default_factory=dict)
    held_out: dict[int, dict[str, float]] = field(default_factory=dict)
    notes: list[tuple[int, str]] = field(default_factory=list)

    def curve(self, key: str) -> list[tuple[float, float]]:
        """One figure over steps."""
        found = ((step, line.get(key)) for step, line in sorted(self.steps.items()))
        return [(float(step), float(value)) for step, value in found if value is not None]

    @property
    def last(self) -> dict[str, Any]:
        return self.steps[max(self.steps)] if self.steps else {}


def phase_logs(lines: Sequence[dict[str, Any]]) -> dict[str, PhaseLog]:
    """What the lines of a log say of each phase, in the order in which they began."""
    phases: dict[str, PhaseLog] = {}
    for line in lines:
        phase = phases.setdefault(line["phase"], PhaseLog(line["phase"]))
        step = int(line["step"])
        if "note" in line:
            phase.notes.append((step, line["note"]))
        elif "held_out" in line:
            phase.held_out[step] = line["held_out"]
        else:
            phase.steps[step] = line
    return phases
