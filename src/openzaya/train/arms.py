"""Ablations: arms that differ from one recipe in what is tested, each trained once a seed, resumable at any moment.

A recipe with arms names another recipe, the baseline, and what each arm changes in it:

    baseline = "baseline.toml"      # beside this file
    seeds = [0, 1, 2]
    figures = ["code", "problems"]  # what is told and judged, of `openzaya.train.measures.FIGURES`

    [arms.zaya1]                    # the first arm is the one that the others are compared with

    [arms.linear-router]
    ablation.router = "linear"

    [arms.cut]
    phase.overlong = "truncate"     # `phase` changes every phase

Every run is a folder `<arm>-<seed>` with a recipe of its own, which `openzaya train` repeats. Tokenizer and tokens of
the corpora are made once, by the baseline's own seed. Recipes with arms that share a folder share the runs of arms that
both have, so a baseline is trained once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from openzaya.locks import alone
from openzaya.train.config import Positive, TrainConfig, checked, read_toml
from openzaya.train.loop import Run
from openzaya.train.measures import FIGURES, Measured, measure, read_measured
from openzaya.train.recipe_text import toml_text
from openzaya.train.reports import StepReport
from openzaya.train.speaker import speaker_of

_ARM_NAME = r"^[a-z0-9][a-z0-9.-]*$"
_TOLD_SECONDS = 5.0


class ArmsRecipe(BaseModel):
    """What is compared: see the head of this module."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    baseline: str
    """The recipe that the arms change: a path from this file's folder."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1, max_length=10)] = (0, 1, 2)
    """Of weights and of the order of the data; the same for every arm, so that differences are paired."""
    figures: Annotated[tuple[str, ...], Field(min_length=1)] = ("code", "problems")
    problems: Positive = 200
    """Held-out problems of the baseline's mixture that every run is asked at its end."""
    arms: Annotated[dict[Annotated[str, Field(pattern=_ARM_NAME)], dict[str, Any]], Field(min_length=2)]

    @field_validator("seeds")
    @classmethod
    def _apart(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds {list(seeds)} has one twice, which would be the same run")
        return seeds

    @field_validator("figures")
    @classmethod
    def _known(cls, figures: tuple[str, ...]) -> tuple[str, ...]:
        for name in figures:
            if name not in FIGURES:
                raise ValueError(f"the figure {name!r} is unknown; there are {', '.join(FIGURES)}")
        return figures


@dataclass(frozen=True, slots=True)
class ArmRun:
    """One run: an arm with a seed."""

    arm: str
    seed: int
    config: TrainConfig
    text: str
    """Its recipe."""
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.seed}"


@dataclass
class Arms:
    """The runs of a recipe with arms, in a folder. `report` gets sentences, and steps as a run reports them."""

    recipe: ArmsRecipe
    path: Path
    folder: Path
    report: Callable[[StepReport | str], None] = lambda _report: None
    _told: float = field(default=0.0, init=False)

    @classmethod
    def read(cls, path: Path, folder: Path, report: Callable[[StepReport | str], None] = lambda _report: None) -> Arms:
        """The arms of a recipe, all of them checked; raises ValueError naming file, key and what is wrong."""
        arms = cls(checked(ArmsRecipe, read_toml(path), path), path, folder, report)
        _all = arms.runs
        return arms

    @cached_property
    def runs(self) -> list[ArmRun]:
        """Every arm with the first seed, then with the next."""
        return [self._run_of(arm, seed) for seed in self.recipe.seeds for arm in self.recipe.arms]

    @cached_property
    def baseline(self) -> dict[str, Any]:
        return read_toml(self.path.parent / self.recipe.baseline)

    def measured(self) -> dict[str, list[Measured]]:
        """What was measured so far, by arm, in the order of the seeds; raises ValueError where a file is damaged."""
        found: dict[str, list[Measured]] = {arm: [] for arm in self.recipe.arms}
        for run in self.runs:
            if (figures := read_measured(run.folder)) is not None:
                found[run.arm].append(figures)
        return found

    def train(self, after: Callable[[], None] = lambda: None) -> None:
        """Train and measure every run that is not finished; `after` is called when one more is, and at the end.

        Raises ValueError as a run does, and where `folder` holds a run of this name with another recipe.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        left = [run for run in self.runs if not self._is_finished(run)]
        began = time.monotonic()
        for done, run in enumerate(left):
            seconds = (time.monotonic() - began) / done * (len(left) - done) if done else None
            later = "" if seconds is None else f", about {seconds / 60:.0f} min left"
            self.report(f"{run.name}: run {len(self.runs) - len(left) + done + 1} of {len(self.runs)}{later}")
            lock = self.folder / f"{run.name}.lock"
            lock.touch()
            with alone(lock, lambda name=run.name: self.report(f"{name}: another process trains it; waiting")):  # type: ignore[misc]
                self._finish(run)
            after()
        after()

    def _finish(self, run: ArmRun) -> None:
        if self._is_finished(run):
            return
        self._speak()
        training = Run(run.config, run.text, run.folder, self._reporter(run))
        training.run()
        measure(training, self.recipe.problems)

    def _is_finished(self, run: ArmRun) -> bool:
        """Whether a run is trained and measured; raises ValueError where it had another recipe."""
        found = read_measured(run.folder)
        if found is None or found.asked != self.recipe.problems:
            return False
        if (run.folder / "recipe.toml").read_text(encoding="utf-8") != run.text:
            raise ValueError(f"{run.folder} holds a run of another recipe; give another folder or remove this one")
        return True

    def _speak(self) -> None:
        """Make the tokenizer that all arms share, if there is none."""
        config = checked(TrainConfig, self.baseline, self.recipe.baseline)
        speaker_of(config, self.folder, self.report)

    def _run_of(self, arm: str, seed: int) -> ArmRun:
        fields = merged(self.baseline, self.recipe.arms[arm])
        fields["seed"] = seed
        fields["tokenizer"] = {"folder": str(self.folder / "tokenizer")}
        fields["shards"] = str(self.folder / "corpora")
        config = checked(TrainConfig, fields, f"{self.path} (arms.{arm})")
        return ArmRun(arm, seed, config, toml_text(fields), self.folder / f"{arm}-{seed}")

    def _reporter(self, run: ArmRun) -> Callable[[StepReport | str], None]:
        """Sentences as they come, steps now and then: a run here reports every step, for its curves."""

        def tell(report: StepReport | str) -> None:
            if isinstance(report, str):
                self.report(f"{run.name}: {report}")
            elif time.monotonic() - self._told > _TOLD_SECONDS:
                self._told = time.monotonic()
                self.report(replace(report, phase=run.name))

        return tell


def merged(recipe: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `recipe` with those of `changes` in their place, tables key by key.

    `changes.phase` goes into each of the phases. Neither argument changes.
    """
    changes = dict(changes)
    every_phase = changes.pop("phase", {})
    fields = _over(recipe, changes)
    fields["phases"] = [_over(phase, every_phase) for phase in fields.get("phases", [])]
    return fields


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(below)
    for key, value in above.items():
        inner = found.get(key)
        found[key] = _over(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return found


def changed(changes: Mapping[str, Any], path: Sequence[str] = ()) -> Iterator[str]:
    """What an arm changes, as lines of TOML with dotted keys."""
    for key, value in changes.items():
        if isinstance(value, Mapping):
            yield from changed(value, (*path, key))
        else:
            yield f"{'.'.join((*path, key))} = {toml_text({'x': value}).partition(' = ')[2].strip()}"
