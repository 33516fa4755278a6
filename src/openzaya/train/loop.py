"""The training loop: phases one after the other, each resumable at any moment.

A run lives in one folder: `tokenizer/`, and for each phase `<phase>/` (the finished checkpoint in the native layout),
`<phase>.end` (its float32 masters and moments, from which later phases continue), while it runs `<phase>.states/` and
`<phase>.lock`, and `<phase>.pool-K.jsonl` (rollouts of refresh K). Of all phases are `corpora/` (their tokens),
`log.jsonl` (one line a report) and `report.html`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from openzaya.data.rollouts import Speaker, read_pool, write_pool
from openzaya.engine.torch_threads import torch_threads
from openzaya.locks import alone
from openzaya.model.checkpoint import find_model, save_model
from openzaya.model.config import ZayaConfig
from openzaya.train.config import CHECKPOINT, SCRATCH, PhaseRecipe, TrainConfig
from openzaya.train.html_report import write_html_report
from openzaya.train.learner import StepFigures
from openzaya.train.peak import matmul_peak
from openzaya.train.plan.flops import forward_flops, model_flops
from openzaya.train.reading import open_reading
from openzaya.train.refresh import refreshed_pool
from openzaya.train.reports import Board, StepReport, append_line, boards, curves_of
from openzaya.train.schedule import rate_scale, total_steps
from openzaya.train.speaker import speaker_of
from openzaya.train.state import Progress, not_written, recipe_hash
from openzaya.train.world import Keeper, World


@dataclass(slots=True)
class Run:
    """A run in its folder. `report` gets every `StepReport`, and plain sentences about everything else."""

    config: TrainConfig
    recipe: str
    """The recipe's text; its hash guards against resuming another recipe's state."""
    folder: Path
    report: Callable[[StepReport | str], None] = lambda _report: None
    world: World = field(default_factory=World)
    _speaker: Speaker | None = field(default=None, init=False)

    def run(self, only: str | None = None) -> None:
        """Do every phase that is not finished, or only the one named (phases apart may run at once).

        Raises ValueError where the folder belongs to another recipe, the phase does not exist, the phase that it
        starts from is not finished, the ranks cannot be divided as it says, another process trains the phase, the disk
        is full, or no loss is finite however far the run goes back.
        """
        phases = [phase for phase in self.config.phases if only in (None, phase.name)]
        if not phases:
            names = ", ".join(phase.name for phase in self.config.phases)
            raise ValueError(f"the phase {only!r} is not in the recipe; it has {names}")
        for phase in phases:
            self.world.share(phase)  # refuses what cannot be divided before anything is trained
        self.claim()
        with torch_threads(self.config.threads):
            for phase in phases:
                with self._alone_with(phase):
                    if self.is_finished(phase):
                        self.states(phase).close()
                        self.say(f"{phase.name}: finished before")
                    else:
                        PhaseRun(self, phase).run()

    def claim(self) -> None:
        """Make the folder this recipe's; raises ValueError where it is another's."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.world.leader_first(), alone(self.folder):
            self._guard_recipe()

    @contextmanager
    def _alone_with(self, phase: PhaseRecipe) -> Iterator[None]:
        if not self.world.leads:
            yield
            return

        def refuse() -> None:
            raise ValueError(f"another process trains the phase {phase.name} in {self.folder}; wait for it or stop it")

        lock = self.folder / f"{phase.name}.lock"
        lock.touch()
        with alone(lock, on_wait=refuse):
            yield
            lock.unlink(missing_ok=True)

    def is_finished(self, phase: PhaseRecipe) -> bool:
        """Whether a phase has left what it leaves."""
        name = phase.name if self.exports else f"{phase.name}.end"
        return (self.folder / name).exists()

    @property
    def exports(self) -> bool:
        """Whether phases leave checkpoint folders: not where the model fits no layout."""
        return self.config.ablation.fits_layout

    def states(self, phase: PhaseRecipe) -> Keeper:
        """Where the states of a phase are kept while it runs."""
        return self.world.states(self.folder / f"{phase.name}.states", self.config.keep_last, self.config.keep_every)

    @property
    def speaker(self) -> Speaker:
        if self._speaker is None:
            with self.world.leader_first():
                self._speaker = speaker_of(self.config, self.folder, self.say)
        return self._speaker

    @property
    def model_config(self) -> ZayaConfig:
        """The shape of the model; raises ValueError where the tokenizer has more tokens than it."""
        tokenizer, model = self.speaker.tokenizer, self.config.model
        if model.checkpoint is not None:
            shape = ZayaConfig.from_folder(find_model(model.checkpoint))
        else:
            fitted = {
                "vocab_size": tokenizer.vocab_size,
                "pad_token_id": tokenizer.pad_id,
                "bos_token_id": tokenizer.bos_id,
                "eos_token_id": min(tokenizer.eos_ids),
                "dtype": "float32",
            }
            shape = model.build(**{name: value for name, value in fitted.items() if name not in model.changes})
        if shape.vocab_size < tokenizer.vocab_size:
            raise ValueError(f"the tokenizer has {tokenizer.vocab_size} tokens and the model {shape.vocab_size}")
        return shape

    def _guard_recipe(self) -> None:
        kept = self.folder / "recipe.toml"
        if not kept.exists():
            partial = kept.with_suffix(".partial")
            partial.write_text(self.recipe, encoding="utf-8")
            partial.replace(kept)
        elif recipe_hash(kept.read_text(encoding="utf-8")) != recipe_hash(self.recipe):
            raise ValueError(f"{self.folder} holds a run of another recipe; give another folder or remove this one")

    def say(self, report: StepReport | str) -> None:
        """Report something, once for all processes."""
        if self.world.leads:
            self.report(report)

    def log(self, **fields: Any) -> None:
        """Add a line to the log, once for all processes."""
        if self.world.leads:
            append_line(self.folder / "log.jsonl", fields)


class PhaseRun:
    """One phase of a run: its learner, its place, and its pool of rollouts."""

    def __init__(self, run: Run, phase: PhaseRecipe) -> None:
        self.run_, self.phase = run, phase
        speaker, world = run.speaker, run.world
        with world.leader_first():
            reading = open_reading(run.config, phase, speaker, run.folder, run.say, *world.share(phase))
        self.source, self.problems = reading.source, reading.problems
        self.learner = world.learner(run.config, run.model_config, phase)
        self.states = run.states(phase)
        self.step = self.refreshes = self.bad = 0
        self.returned_to: int | None = None
        self.seconds_before = 0.0
        self.started = time.monotonic()
        self.boards: list[Board] = []
        self.peak: float | None = None

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def run(self) -> None:
        if self.run_.world.ranks == 1 and (undivided := self.phase.sharding.undivided):
            self._report(undivided)
        self._take_up()
        if self.run_.world.leads:
            self.boards = boards(self.run_.config.logging, self.run_.folder, self.phase.name, self.step)
        try:
            self._steps(total_steps(self.phase))
            self._finish()
        finally:
            for board in self.boards:
                board.close()

    def _steps(self, steps: int) -> None:
        saved = reported = began = time.monotonic()
        first = self.step
        while self.step < steps:
            if self._refresh_due(steps):
                self._refresh()
                if not self.bad:
                    self._save()
                began, first = time.monotonic(), self.step
            figures = self.learner.step(self.source.batches(self.step), rate_scale(self.phase, self.step))
            self.step += 1
            if not figures.taken:
                self._pass_over(figures)
                continue
            self.bad, self.returned_to = 0, None
            now = time.monotonic()
            if now - reported > self.run_.config.logging.every_seconds or self.step == steps:
                reported = now
                self._report_step(figures, steps, (now - began) / (self.step - first))
            every = self.run_.config.held_out.every_steps
            if every is not None and self.step % every == 0 and self.step < steps:
                self._evaluate()
            if self._save_due(now - saved):
                self._save()
                saved = time.monotonic()

    def _take_up(self) -> None:
        start = self.run_.config.start_of(self.phase)
        for tensors, progress in self.states.read(self._report):
            self.learner.load(tensors, progress)
            self.step, self.refreshes, self.seconds_before = progress.step, progress.refreshes, progress.seconds
            self.returned_to = progress.returned_to
            if self.refreshes and self.problems is not None:
                self.problems.pool = read_pool(self._pool_path(self.refreshes))
            self._report(f"goes on at step {self.step}")
            return
        if start not in (SCRATCH, CHECKPOINT):
            end = self.run_.folder / f"{start}.end"
            if not end.exists():
                raise ValueError(f"the phase {self.phase.name!r} starts from {start!r}: run that one first")
            self.run_.world.read_end(end, self.learner)
        self._save()

    # ---- steps that came to nothing ----

    def _pass_over(self, figures: StepFigures) -> None:
        self.bad += 1
        self._report(
            f"step {self.step} is passed over: its loss is {figures.loss:.4g} and its gradient "
            f"{figures.gradient_norm:.4g}"
        )
        if self.bad == self.run_.config.bad_steps:
            self._go_back()

    def _go_back(self) -> None:
        """Take up the newest state and go on behind the steps that were passed over.

        What was read since that state is not read again: the same steps would come to the same end. A state that was
        taken up already, and from which no step could be taken, makes way for the one before it.
        """
        older = (found for found in self.states.read(self._report) if self._is_older(found[1]))
        taken = next(older, None)
        if taken is None:
            raise ValueError(
                f"{self.phase.name}: {self.bad} steps in a row up to step {self.step} have no finite loss, and there "
                "is no earlier state to go back to; lower the rates, or lengthen the warm-up"
            )
        tensors, progress = taken
        self.learner.load(tensors, progress)
        self.bad, self.returned_to = 0, progress.step
        self._report(f"back to the weights of step {progress.step}, going on behind step {self.step}")
        self._save()
        self.states.remove(progress.step)

    def _is_older(self, progress: Progress) -> bool:
        if self.returned_to is None:
            return True
        return progress.step < self.returned_to and progress.returned_to is None

    # ---- rollouts for aggregation ----

    def _refresh_due(self, steps: int) -> bool:
        aggregation = self.phase.aggregation
        if aggregation is None or aggregation.refreshes == 0:
            return False
        return self.step * aggregation.refreshes >= self.refreshes * steps

    def _refresh(self) -> None:
        assert self.phase.aggregation is not None
        assert self.problems is not None
        self.refreshes += 1
        path, run = self._pool_path(self.refreshes), self.run_
        # The leader's folder decides: others may see a file later than it is there.
        model = None if run.world.agreed(path.exists()) else self.learner.master_model()
        with run.world.leader_first():
            if model is not None:
                pool = refreshed_pool(
                    model,
                    self.phase.aggregation,
                    self.problems.mixture,
                    run.speaker,
                    self.refreshes,
                    run.config.seed,
                    self._report,
                )
                write_pool(path, pool)
            self.problems.pool = read_pool(path)

    def _pool_path(self, refresh: int) -> Path:
        return self.run_.folder / f"{self.phase.name}.pool-{refresh}.jsonl"

    # ---- reports ----

    def _report(self, sentence: str) -> None:
        self.run_.say(f"{self.phase.name}: {sentence}")
        self.run_.log(phase=self.phase.name, step=self.step, note=sentence)

    def _report_step(self, figures: StepFigures, steps: int, each: float) -> None:
        tokens_a_second = self.phase.batch_tokens / each
        report = StepReport(
            phase=self.phase.name,
            step=self.step,
            steps=steps,
            loss=figures.loss,
            gradient_norm=figures.gradient_norm,
            load_entropy=figures.load_entropy,
            tokens_per_second=tokens_a_second,
            seconds_left=each * (steps - self.step),
            rate=rate_scale(self.phase, self.step - 1),
            utilisation=self._utilisation(tokens_a_second),
            load_entropies=tuple(figures.load_entropies),
        )
        self.run_.say(report)
        self.run_.log(**asdict(report), seconds=round(self.seconds, 1))
        for board in self.boards:
            board.add(curves_of(report), self.step)

    def _utilisation(self, tokens_a_second: float) -> float:
        weight = next(self.learner.model.parameters())
        if self.peak is None:
            self.peak = matmul_peak(weight.device, weight.dtype)
        operations = model_flops(forward_flops(self.learner.model.config, self.phase.row))
        return tokens_a_second * operations / self.peak

    def _evaluate(self) -> None:
        losses = {
            name: self.learner.loss_of(batches)
            for name, batches in self.source.held_out(self.run_.config.held_out.tokens).items()
            if self.run_.world.agreed(bool(batches))  # the leader has the first rows
        }
        told = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
        self.run_.say(f"{self.phase.name}: held-out loss at step {self.step:,}: {told}")
        self.run_.log(phase=self.phase.name, step=self.step, held_out=losses)
        for board in self.boards:
            board.add({f"held_out/{name}": loss for name, loss in losses.items()}, self.step)

    # ---- state ----

    def _save_due(self, seconds: float) -> bool:
        config = self.run_.config
        multiples = [every for every in (config.save_steps, config.keep_every) if every is not None]
        late = self.run_.world.agreed(seconds > config.save_seconds)
        return late or any(self.step % every == 0 for every in multiples)

    def _progress(self) -> Progress:
        return Progress(
            recipe_hash(self.run_.recipe),
            self.phase.name,
            self.step,
            self.learner.optimizer.step_count,
            self.learner.balancer.controller.step_count,
            self.refreshes,
            self.seconds,
            self.returned_to,
        )

    def _save(self) -> None:
        self.states.write(self.learner.state(), self._progress())

    def _finish(self) -> None:
        self._evaluate()
        end = self.run_.folder / f"{self.phase.name}.end"
        self.run_.world.write_end(end, self.learner, self._progress())
        if self.run_.exports:
            self._export(self.run_.folder / self.phase.name)
        self.states.close()
        self._report(f"finished after {self.seconds / 60:.1f} minutes of work")
        if self.run_.world.leads:
            write_html_report(self.run_.folder)

    def _export(self, folder: Path) -> None:
        partial = folder.with_suffix(".partial")
        model, config = self.learner.master_model(), self.run_.config
        if model is None:
            return
        # Training from random weights keeps the masters as they are; a checkpoint goes on in the type that it came in.
        dtype = None if config.model.checkpoint is None else self.run_.model_config.dtype
        shutil.rmtree(partial, ignore_errors=True)
        try:
            save_model(model, partial, dtype=dtype)
            shutil.copytree(self.run_.folder / "tokenizer", partial, dirs_exist_ok=True)
            partial.replace(folder)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            size = sum(parameter.nbytes for parameter in model.parameters())
            raise ValueError(not_written(folder, size, error)) from None
