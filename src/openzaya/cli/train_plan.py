"""What `openzaya train --dry-run` and `--plan` print: the resolved recipe, and what it takes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openzaya.cli.exits import InputError, say
from openzaya.cli.figures import byte_size, count, duration, flops, rate

if TYPE_CHECKING:
    from openzaya.model.config import ZayaConfig
    from openzaya.train.config import TrainConfig
    from openzaya.train.plan.cluster import Cluster
    from openzaya.train.plan.on_cluster import ClusterPlanner, PhaseOnCluster
    from openzaya.train.plan.outline import Outline
    from openzaya.train.plan.process import Machine, PhaseInProcess, ProcessPlanner

Rows = list[tuple[str, ...]]


def show_process_plan(config: TrainConfig, folder: Path, *, measured: float | None, as_json: bool) -> None:
    """Print the recipe and its plan on this machine; `measured` is in tokens a second, of the first phase."""
    from openzaya.train.plan.process import ProcessPlanner
    from openzaya.train.recipe_text import toml_text

    shape, machine = shape_of(config), _this_machine(config)
    planner = ProcessPlanner.create(config, shape, machine)
    if measured is not None:
        planner = planner.measured(measured)
    phases = planner.phases()
    if as_json:
        facts = _facts(config, shape, folder, phases)
        facts["plan"]["machine"] = asdict(planner.machine)
        print(json.dumps(facts))
        return
    for phase in config.phases:
        if undivided := phase.sharding.undivided:
            say(f"{phase.name}: {undivided}")
    print(toml_text(config.model_dump(mode="json")))
    _print_sections(
        (f"the plan, in {folder}", _outline_rows(shape, [phase.outline for phase in phases])),
        ("operations", _operation_rows([phase.outline for phase in phases])),
        ("memory of a step", _memory_rows(planner, phases)),
        ("time", _time_rows(planner, phases, measured)),
    )


def show_cluster_plan(
    config: TrainConfig, folder: Path, cluster: Cluster, *, measured: float | None, as_json: bool
) -> None:
    """Print the plan on a described cluster; `measured` is in tokens a second of one GPU, of the first phase."""
    from openzaya.train.plan.on_cluster import ClusterPlanner

    shape = shape_of(config)
    planner = ClusterPlanner.create(config, shape, cluster)
    if measured is not None:
        planner = planner.measured(measured)
    phases = planner.phases()
    fastest = [planner.fastest(phase) for phase in config.phases]
    if as_json:
        facts = _facts(config, shape, folder, phases)
        facts["plan"] |= {
            "cluster": planner.cluster.model_dump(mode="json"),
            "saving": asdict(planner.saving),
            "fastest": [None if plan is None else asdict(plan) for plan in fastest],
        }
        print(json.dumps(facts))
        return
    _print_sections(
        (f"the plan, on {cluster.name}", _outline_rows(shape, [phase.outline for phase in phases])),
        ("operations", _operation_rows([phase.outline for phase in phases])),
        ("layout", _layout_rows(phases, fastest)),
        ("memory of a GPU", _cluster_memory_rows(planner, phases)),
        ("seconds of a step", _step_rows(phases)),
        ("the whole run", _cluster_time_rows(phases)),
        ("storage", _storage_rows(planner, phases)),
        ("assumed, not measured", _assumed_rows(planner, measured)),
    )


def shape_of(config: TrainConfig) -> ZayaConfig:
    """The shape that a recipe trains; a tokenizer that it brings along is taken to fit the shape's vocabulary."""
    from openzaya.cli.info import read_shape

    if config.model.checkpoint is not None:
        return read_shape(config.model.checkpoint)
    own = config.tokenizer.folder is None and "vocab_size" not in config.model.changes
    return config.model.build(**({"vocab_size": config.tokenizer.vocab_size} if own else {}))


def _this_machine(config: TrainConfig) -> Machine:
    import torch

    from openzaya.memory import memory_bytes
    from openzaya.train.peak import matmul_peak
    from openzaya.train.plan.process import UTILISATION, Machine

    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"the recipe's device is {config.device!r}, and torch finds none here; change device")
    say(f"measuring large matrix products in {config.dtype} on {device.type}")
    free = memory_bytes()[1] if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
    return Machine(
        device=device.type,
        matmul=matmul_peak(device, getattr(torch, config.dtype)),
        utilisation=UTILISATION.get(device.type, UTILISATION["cuda"]),
        memory=free,
    )


def _facts(
    config: TrainConfig, shape: ZayaConfig, folder: Path, phases: Sequence[PhaseInProcess | PhaseOnCluster]
) -> dict[str, Any]:
    from openzaya.model.info import model_info

    sizes = model_info(shape)
    return {
        "recipe": config.model_dump(mode="json"),
        "plan": {
            "folder": str(folder),
            "parameters": sizes.total,
            "active_parameters": sizes.active,
            "tokens": sum(phase.tokens for phase in config.phases),
            "seconds": sum(phase.seconds for phase in phases),
            "phases": [
                {**asdict(phase), "checkpoint": str(folder / phase.outline.name)} for phase in phases
            ],
        },
    }  # fmt: skip


# ---- tables: a row for each figure, a column for each phase ----


def _outline_rows(shape: ZayaConfig, phases: Sequence[Outline]) -> Rows:
    from openzaya.model.info import model_info

    sizes = model_info(shape)
    return [
        ("parameters", f"{count(sizes.total)}; without embedding {count(sizes.without_embedding)}, "
                       f"{count(sizes.active)} of them active"),
        ("phase", *(phase.name for phase in phases)),
        ("from", *(phase.start for phase in phases)),
        ("tokens", *(count(phase.tokens) for phase in phases)),
        ("steps", *(f"{phase.steps:,}" for phase in phases)),
        ("tokens a step", *(count(phase.batch_tokens) for phase in phases)),
        ("context", *(f"{phase.row:,}" for phase in phases)),
        ("RoPE base", *(f"{phase.rope_base:,.0f}" for phase in phases)),
        ("Muon's rate", *(_rates([rates.muon for rates in phase.rates]) for phase in phases)),
        ("AdamW's rate", *(_rates([rates.adamw for rates in phase.rates]) for phase in phases)),
        ("  of steps", *(", ".join(f"{rates.step + 1:,}" for rates in phase.rates) for phase in phases)),
    ]  # fmt: skip


def _rates(rates: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in rates)


def _operation_rows(phases: Sequence[Outline]) -> Rows:
    from openzaya.train.plan.flops import model_flops

    def parts(name: str, words: str) -> tuple[str, ...]:
        return (words, *(flops(getattr(phase.forward, name)) for phase in phases))

    return [
        ("forward of a token", *(flops(phase.forward.total) for phase in phases)),
        parts("projections", "  attention's projections"),
        parts("convolutions", "  convolutions"),
        parts("attention", "  attention over the context"),
        parts("router", "  routers"),
        parts("experts", "  experts"),
        parts("head", "  head"),
        ("backward of a token", *(flops(2 * phase.forward.total) for phase in phases)),
        ("computed again", *(flops(phase.token_flops - model_flops(phase.forward)) for phase in phases)),
        ("optimizer, a step", *(flops(phase.optimizer_flops) for phase in phases)),
        ("  of a token", *(flops(phase.optimizer_flops / phase.batch_tokens) for phase in phases)),
    ]


def _memory_rows(planner: ProcessPlanner, phases: Sequence[PhaseInProcess]) -> Rows:
    free = planner.machine.memory
    rows: Rows = [("tokens at a time", *(f"{phase.microbatch:,}" for phase in phases))]
    rows += [
        (f"  {kind}", *(byte_size(getattr(phase.memory, kind)) for phase in phases))
        for kind in ("weights", "gradients", "masters", "moments", "activations", "logits")
    ]
    without = phases[0].checkpointing
    return [
        *rows,
        (f"  activations with{'out' if without else ''} checkpointing",
         *(byte_size(phase.other_activations) for phase in phases)),
        ("  logits all at once", *(byte_size(phase.all_logits) for phase in phases)),
        ("in all", *(byte_size(phase.memory.total) for phase in phases)),
        ("fits", *(_fits(phase.fits) for phase in phases)),
        ("free here", "not known" if free is None else byte_size(free)),
    ]  # fmt: skip


def _fits(fits: bool | None) -> str:
    return "not known" if fits is None else "yes" if fits else "NO"


def _time_rows(planner: ProcessPlanner, phases: Sequence[PhaseInProcess], measured: float | None) -> Rows:
    machine = planner.machine
    source = "from the measured speed" if measured is not None else "assumed; --measured gives the true one"
    return [
        ("large products", f"{flops(machine.matmul)}/s on {machine.device}, measured now"),
        ("of them reached", f"{machine.utilisation:.0%}, {source}"),
        ("tokens/s", *(rate(phase.tokens_per_second) for phase in phases)),
        ("time", *(long_duration(phase.seconds) for phase in phases)),
        ("in all", f"{long_duration(sum(phase.seconds for phase in phases))}, rollouts not counted"),
    ]


def _layout_rows(phases: Sequence[PhaseOnCluster], fastest: Sequence[PhaseOnCluster | None]) -> Rows:
    return [
        ("the recipe's", *(_layout(phase) for phase in phases)),
        ("  fits", *(_fits(phase.fits) for phase in phases)),
        ("fastest that fits", *("none fits" if plan is None else _layout(plan) for plan in fastest)),
        ("  tokens/s a GPU", *("-" if plan is None else rate(plan.tokens_per_second_a_gpu) for plan in fastest)),
    ]


def _layout(plan: PhaseOnCluster) -> str:
    layout, share = plan.layout, plan.share
    words = [f"data {layout.data}"]
    words += [f"context {layout.context}"] if layout.context > 1 else []
    words += [f"expert {layout.expert}"] if layout.expert > 1 else []
    words.append(f"{share.microbatches} x {share.microbatch:,} tokens")
    return ", ".join(words) + (", checkpointing" if plan.checkpointing else "")


def _cluster_memory_rows(planner: ClusterPlanner, phases: Sequence[PhaseOnCluster]) -> Rows:
    kinds = ("weights", "gathered", "gradients", "masters", "moments", "activations", "logits")
    rows: Rows = [(f"  {kind}", *(byte_size(getattr(phase.memory, kind)) for phase in phases)) for kind in kinds]
    gpu = planner.cluster.gpu
    return [
        ("phase", *(phase.outline.name for phase in phases)),
        *rows,
        ("in all", *(byte_size(phase.memory.total) for phase in phases)),
        ("a GPU has", f"{byte_size(gpu.memory)} ({gpu.name})"),
    ]


def _step_rows(phases: Sequence[PhaseOnCluster]) -> Rows:
    def part(name: str, words: str) -> tuple[str, ...]:
        return (words, *(f"{getattr(phase.step, name):.3g}" for phase in phases))

    return [
        part("products", "forward and backward"),
        part("optimizer", "optimizer"),
        part("experts", "experts' all-to-all"),
        part("context", "context's keys and values"),
        part("data_waited", "weights and gradients, waited"),
        part("data", "  in all, beside products"),
        part("total", "a step"),
        part("bound", "  products at full speed"),
        ("of the matmul peak", *(f"{phase.utilisation:.1%}" for phase in phases)),
    ]


def _cluster_time_rows(phases: Sequence[PhaseOnCluster]) -> Rows:
    return [
        ("tokens/s a GPU", *(rate(phase.tokens_per_second_a_gpu) for phase in phases)),
        ("tokens/s", *(rate(phase.tokens_per_second_a_gpu * phase.layout.gpus) for phase in phases)),
        ("time", *(long_duration(phase.seconds) for phase in phases)),
        ("in all", long_duration(sum(phase.seconds for phase in phases))),
    ]


def _storage_rows(planner: ClusterPlanner, phases: Sequence[PhaseOnCluster]) -> Rows:
    saving, storage = planner.saving, planner.cluster.storage
    waits = [phase.reading.shortest_step > phase.step.total for phase in phases]
    return [
        ("read a step", *(byte_size(phase.reading.bytes_a_step) for phase in phases)),
        ("page reads a second", *(f"{phase.reading.operations:,.0f}" for phase in phases)),
        ("  of", f"{storage.operations:,.0f}"),
        ("shortest step that it feeds", *(f"{phase.reading.shortest_step:.3g} s" for phase in phases)),
        ("training waits for it", *("YES" if wait else "no" for wait in waits)),
        ("a state of the run", f"{byte_size(saving.state_bytes)}, written in {duration(saving.write_seconds)} beside "
                               f"training, which stops for {saving.blocked_seconds:.2g} s"),
        ("save every", f"{duration(saving.interval_seconds)}: with a failure every "
                       f"{long_duration(saving.seconds_between_failures)} that costs least, "
                       f"{saving.lost_share:.1%} of the time"),
    ]  # fmt: skip


def _assumed_rows(planner: ClusterPlanner, measured: float | None) -> Rows:
    assumed = planner.cluster.assumed.model_dump()
    rows: Rows = [(name, f"{value:,.10g}") for name, value in assumed.items()]
    if measured is not None:
        rows[0] = ("utilisation", f"{assumed['utilisation']:.3g}, fitted to the measured speed of the first phase")
    return rows


def long_duration(seconds: float) -> str:
    """As `duration`, with days where there are many hours: "5.5 days"."""
    return f"{seconds / 86_400:,.1f} days" if seconds >= 2 * 86_400 else duration(seconds)


def _print_sections(*sections: tuple[str, Rows]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    for title, rows in sections:
        console.print(Text(title, style="bold cyan"))
        # What holds for all phases stands in a line of its own, not in the first phase's column.
        columns = max(len(row) for row in rows)
        table = Table(box=None, show_header=False, padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        for _ in range(columns - 1):
            table.add_column(overflow="fold")
        notes = []
        for name, *values in rows:
            if len(values) == 1 and columns > 2:
                notes.append(f"  {name.strip()}: {values[0]}")
            else:
                table.add_row(Text(name), *(Text(value) for value in values))
        console.print(table)
        for note in notes:
            console.print(Text(note))


# ---- the resolved recipe ----
