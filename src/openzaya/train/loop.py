"""The training loop of one process: phases one after the other, each resumable at any moment.

A run lives in one folder: `tokenizer/`, and for each phase `<phase>/` (the finished checkpoint in the native layout),
`<phase>.end` (its float32 masters and moments, from which later phases continue), `<phase>.state` (while it runs),
`<phase>.pool-K.jsonl` (rollouts of refresh K) and `log.jsonl` (one line a report).
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from openzaya.chat import ChatTemplate, Tokenizer, render_reply, train_tokenizer
from openzaya.data.mixture import draw_problem
from openzaya.data.packing import Batch
from openzaya.data.rollouts import PoolEntry, Speaker, read_pool, roll_out, thinned, write_pool
from openzaya.engine.engine import Engine
from openzaya.engine.torch_threads import torch_threads
from openzaya.locks import alone
from openzaya.model.checkpoint import save_model
from openzaya.model.config import ZayaConfig
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.initialise import initialise
from openzaya.model.router import Routing
from openzaya.mrsa.prompts import bundled_prompts
from openzaya.train.balancing import Balancer
from openzaya.train.batches import BatchSource, check_rows
from openzaya.train.config import PhaseRecipe, TrainConfig
from openzaya.train.muon import MuonAdamW
from openzaya.train.schedule import rate_scale, total_steps
from openzaya.train.state import Progress, read_state, recipe_hash, write_state

_REPORT_SECONDS = 10.0
_POOL_INDICES = 1 << 40
"""Problem numbers from here on are for rollouts, so that no pool shares a problem with a plain step."""


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
    tokens_per_second: float
    seconds_left: float
    """Of this phase."""


@dataclass(slots=True)
class Learner:
    """The model in its training dtype with its optimizers; `step` is one update."""

    model: ZayaForCausalLM
    optimizer: MuonAdamW
    balancer: Balancer

    @classmethod
    def create(cls, config: TrainConfig, model_config: ZayaConfig) -> Learner:
        model = initialise(ZayaForCausalLM(model_config), config.seed)
        optimizer = MuonAdamW(model.named_parameters(), config.optimizer)
        # The optimizer has copied its float32 masters by now; buffers (the balancing biases) stay float32.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(getattr(torch, config.dtype))
        for slot in optimizer.slots.values():
            slot.parameter.data = slot.parameter.data.to(getattr(torch, config.dtype))
        return cls(model, optimizer, Balancer(model, config.optimizer.balancing_rate))

    def step(self, batches: list[Batch], scale: float) -> tuple[float, float, float]:
        """Returns the loss, the gradient norm and the load entropy."""
        learned = sum(batch.learned_tokens for batch in batches)
        loss = sum(self._accumulate(batch, learned) for batch in batches)
        norm = self.optimizer.clip()
        self.optimizer.step(scale)
        return loss, norm, self.balancer.step(min(1.0, scale))

    def _accumulate(self, batch: Batch, learned: int) -> float:
        routing = Routing()
        documents = None if batch.document_ids is None else torch.from_numpy(batch.document_ids)
        hidden = self.model.hidden(torch.from_numpy(batch.input_ids), document_ids=documents, routing=routing)
        places = torch.from_numpy(batch.learned)
        logits = self.model.logits(hidden[places])
        loss = F.cross_entropy(logits, torch.from_numpy(batch.targets)[places], reduction="sum") / learned
        loss.backward()
        real = torch.from_numpy(batch.real).flatten()
        self.balancer.count([chosen[real] for chosen in routing.chosen])
        return loss.item()

    def state(self) -> dict[str, torch.Tensor]:
        return self.optimizer.state() | self.balancer.state()

    def load(self, tensors: dict[str, torch.Tensor], progress: Progress) -> None:
        self.optimizer.load_state(tensors, progress.optimizer_steps)
        self.balancer.load_state(tensors, progress.balancing_steps)

    def master_model(self) -> ZayaForCausalLM:
        """A float32 copy of the model made of the masters."""
        copy = ZayaForCausalLM(self.model.config)
        masters = {name: slot.master.clone() for name, slot in self.optimizer.slots.items()}
        biases = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        copy.load_state_dict(masters | biases)
        return copy.eval()


@dataclass(slots=True)
class Run:
    """A run in its folder. `report` gets every `StepReport`, and plain sentences about everything else."""

    config: TrainConfig
    recipe: str
    """The recipe's text; its hash guards against resuming another recipe's state."""
    folder: Path
    report: Callable[[StepReport | str], None] = lambda _report: None
    _speaker: Speaker | None = field(default=None, init=False)

    def run(self, only: str | None = None) -> None:
        """Do every phase that is not finished, or only the one named (phases apart may run at once).

        Raises ValueError where the folder belongs to another recipe, the phase does not exist, or the phase that it
        starts from is not finished.
        """
        phases = [phase for phase in self.config.phases if only in (None, phase.name)]
        if not phases:
            names = ", ".join(phase.name for phase in self.config.phases)
            raise ValueError(f"the phase {only!r} is not in the recipe; it has {names}")
        self.folder.mkdir(parents=True, exist_ok=True)
        with alone(self.folder):
            self._guard_recipe()
        with torch_threads(self.config.threads):
            for phase in phases:
                if (self.folder / phase.name).is_dir():
                    self._say(f"{phase.name}: finished before")
                else:
                    PhaseRun(self, phase).run()

    @property
    def speaker(self) -> Speaker:
        if self._speaker is None:
            tokenizer = self._tokenizer(self.folder / "tokenizer")
            template = ChatTemplate.from_folder(self.folder / "tokenizer")
            self._speaker = Speaker(tokenizer, template, bundled_prompts())
        return self._speaker

    @property
    def model_config(self) -> ZayaConfig:
        tokenizer = self.speaker.tokenizer
        return self.config.model.build(
            vocab_size=tokenizer.vocab_size,
            pad_token_id=tokenizer.pad_id,
            bos_token_id=tokenizer.bos_id,
            eos_token_id=min(tokenizer.eos_ids),
            dtype="float32",
        )

    def _tokenizer(self, folder: Path) -> Tokenizer:
        with alone(self.folder):
            if not folder.is_dir():
                recipe = self.config.tokenizer
                self._say(f"tokenizer: training on {recipe.documents:,} problems")
                partial = folder.with_suffix(".partial")
                train_tokenizer(self._tokenizer_texts(), recipe.vocab_size, partial)
                partial.replace(folder)
        return Tokenizer.from_folder(folder)

    def _tokenizer_texts(self) -> Iterator[str]:
        template, prompts = ChatTemplate.built_in(), bundled_prompts()
        for index in range(self.config.tokenizer.documents):
            problem = draw_problem(self.config.mixture, self.config.seed, _POOL_INDICES // 2 + index)
            question = template.render([{"role": "user", "content": problem.question}])
            yield question + render_reply(problem.worked.reasoning, problem.reply())
            # Aggregation reads its wording in every prompt.
            if index % 4 == 0:
                yield prompts.fixed_text("math", 4)

    def _guard_recipe(self) -> None:
        kept = self.folder / "recipe.toml"
        if not kept.exists():
            partial = kept.with_suffix(".partial")
            partial.write_text(self.recipe, encoding="utf-8")
            partial.replace(kept)
        elif recipe_hash(kept.read_text(encoding="utf-8")) != recipe_hash(self.recipe):
            raise ValueError(f"{self.folder} holds a run of another recipe; give another folder or remove this one")

    def _say(self, sentence: str) -> None:
        self.report(sentence)

    def log(self, **fields: Any) -> None:
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(fields) + "\n")


class PhaseRun:
    """One phase of a run: its learner, its place, and its pool of rollouts."""

    def __init__(self, run: Run, phase: PhaseRecipe) -> None:
        self.run_, self.phase = run, phase
        self.mixture = run.config.mixture if phase.mixture is None else phase.mixture
        check_rows(self.mixture, run.speaker, phase.row)
        self.source = BatchSource(self.mixture, run.speaker, phase, run.config.seed)
        self.learner = Learner.create(run.config, run.model_config)
        self.step = self.refreshes = 0
        self.pool: list[PoolEntry] = []
        self.seconds_before = 0.0
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def run(self) -> None:
        self._take_up()
        steps = total_steps(self.phase)
        saved = reported = time.monotonic()
        began, first = time.monotonic(), self.step
        while self.step < steps:
            if self._refresh_due(steps):
                self._refresh()
                self._save(self._path("state"))
                began, first = time.monotonic(), self.step
            scale = rate_scale(self.phase, self.step)
            loss, norm, entropy = self.learner.step(self.source.batches(self.step, self.pool), scale)
            self.step += 1
            now = time.monotonic()
            if now - reported > _REPORT_SECONDS or self.step == steps:
                reported = now
                each = (now - began) / (self.step - first)
                self._report(
                    StepReport(
                        self.phase.name, self.step, steps, loss, norm, entropy,
                        self.phase.batch_tokens / each, each * (steps - self.step),
                    )
                )  # fmt: skip
            if now - saved > self.run_.config.save_seconds:
                self._save(self._path("state"))
                saved = time.monotonic()
        self._finish()

    def _take_up(self) -> None:
        state = self._path("state")
        if state.exists():
            tensors, progress = read_state(state)
            self.learner.load(tensors, progress)
            self.step, self.refreshes, self.seconds_before = progress.step, progress.refreshes, progress.seconds
            if self.refreshes:
                self.pool = read_pool(self._pool_path(self.refreshes))
            self.run_.report(f"{self.phase.name}: goes on at step {self.step}")
        elif self.phase.start != "scratch":
            end = self.run_.folder / f"{self.phase.start}.end"
            if not end.exists():
                raise ValueError(f"the phase {self.phase.name!r} starts from {self.phase.start!r}: run that one first")
            tensors, progress = read_state(end)
            self.learner.load(tensors, progress)

    # ---- rollouts for aggregation ----

    def _refresh_due(self, steps: int) -> bool:
        aggregation = self.phase.aggregation
        if aggregation is None or aggregation.refreshes == 0:
            return False
        return self.step * aggregation.refreshes >= self.refreshes * steps

    def _refresh(self) -> None:
        recipe = self.phase.aggregation
        assert recipe is not None
        self.refreshes += 1
        path = self._pool_path(self.refreshes)
        if not path.exists():
            first = _POOL_INDICES + self.refreshes * recipe.problems
            self.run_.report(f"{self.phase.name}: rollouts of {recipe.problems} problems, refresh {self.refreshes}")
            with Engine(
                self.learner.master_model(), tokenizer=self.run_.speaker.tokenizer, max_batch=512, prefill_chunk=4096
            ) as engine:

                def sample(
                    prompts: Sequence[Sequence[int]], *, rollouts: int, max_tokens: int, seed: int
                ) -> list[list[tuple[int, ...]]]:
                    replies = engine.generate(prompts, max_tokens=max_tokens, n=rollouts, seed=seed)
                    return [[reply.token_ids for reply in group] for group in replies]

                pool = roll_out(
                    sample,
                    self.mixture,
                    self.run_.speaker,
                    range(first, first + recipe.problems),
                    rollouts=recipe.rollouts,
                    tails=recipe.tails,
                    tau=recipe.tau,
                    beta=recipe.beta,
                    second_round=round(recipe.second_round * recipe.problems),
                    seed=self.run_.config.seed,
                    report=lambda line: self._report(f"{self.phase.name}: {line}"),
                )
            seed = self.run_.config.seed + self.refreshes
            kept = thinned(pool, solved=recipe.solved, unsolved=recipe.unsolved, seed=seed)
            self._report(f"{self.phase.name}: {len(kept)} of {len(pool)} sets of tails are kept")
            write_pool(path, kept)
        self.pool = read_pool(path)

    def _pool_path(self, refresh: int) -> Path:
        return self.run_.folder / f"{self.phase.name}.pool-{refresh}.jsonl"

    # ---- reports and state ----

    def _report(self, report: StepReport | str) -> None:
        self.run_.report(report)
        if isinstance(report, str):
            self.run_.log(phase=self.phase.name, step=self.step, note=report)
        else:
            self.run_.log(
                **{name: getattr(report, name) for name in StepReport.__slots__}, seconds=round(self.seconds, 1)
            )

    def _path(self, ending: str) -> Path:
        return self.run_.folder / f"{self.phase.name}.{ending}"

    def _save(self, path: Path) -> None:
        progress = Progress(
            recipe_hash(self.run_.recipe),
            self.phase.name,
            self.step,
            self.learner.optimizer.step_count,
            self.learner.balancer.step_count,
            self.refreshes,
            self.seconds,
        )
        write_state(path, self.learner.state(), progress)

    def _finish(self) -> None:
        self._save(self._path("end"))
        folder = self.run_.folder / self.phase.name
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        save_model(self.learner.master_model(), partial)
        shutil.copytree(self.run_.folder / "tokenizer", partial, dirs_exist_ok=True)
        partial.replace(folder)
        self._path("state").unlink(missing_ok=True)
        self._report(f"{self.phase.name}: finished after {self.seconds / 60:.1f} minutes of work")
