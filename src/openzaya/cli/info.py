"""`openzaya info`: what a model weighs and keeps, and what this machine can do with it."""

from __future__ import annotations

import importlib.resources
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openzaya.cli.figures import byte_size, count, rate
from openzaya.cli.options import BUNDLED
from openzaya.model.hub.places import kept_folder, origin_of

if TYPE_CHECKING:
    from rich.table import Table

    from openzaya.bench.outlook import Outlook
    from openzaya.cli.machine import Machine
    from openzaya.model.config import ZayaConfig
    from openzaya.model.info import ModelInfo


def info(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A folder, a hub id (only its config.json is fetched), tiny, or a shape: zaya1-8b, zaya1-74b.",
        ),
    ] = BUNDLED,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what a model weighs, and what this machine can run and how fast.

    Shape, parameter counts, bytes of state a token; cores, memory, torch; for each way of keeping the weights whether
    it fits here, and an estimate of its speed from a read of memory that is measured now.
    """
    from openzaya.bench.outlook import outlooks, outlooks_on_gpu
    from openzaya.cli.machine import this_machine
    from openzaya.model.info import model_info

    config, stored = read_shape(model), read_stored(model)
    sizes, machine = model_info(config, config.dtype), this_machine()
    here = outlooks(
        config,
        available_bytes=machine.available_bytes,
        bytes_a_second=machine.bytes_per_second,
        core=machine.no_core is None,
    )
    for device in machine.devices:
        here += outlooks_on_gpu(config, device.name, device.memory_bytes)
    facts = {
        "model": model,
        "shape": _plain_shape(config),
        "sizes": asdict(sizes),
        "stored": stored,
        "machine": asdict(machine),
        "here": [asdict(each) for each in here],
    }
    if as_json:
        print(json.dumps(facts))
    else:
        _print_table(model, config, sizes, machine, stored, here)


def read_shape(model: str) -> ZayaConfig:
    """The shape of a model, from its config.json or by name; weights are neither needed nor fetched.

    Raises ValueError where there is none.
    """
    from openzaya.model.config import NAMED_SHAPES, ZayaConfig

    if model != BUNDLED and model in NAMED_SHAPES:
        return NAMED_SHAPES[model]
    return ZayaConfig.from_folder(_folder(model))


def read_stored(model: str) -> dict[str, Any] | None:
    """How a quantised model is kept: scheme, group and bytes; None for any other. Raises as `read_shape` does."""
    from openzaya.model.config import NAMED_SHAPES, ZayaConfig, read_fields
    from openzaya.model.info import ITEM_BYTES
    from openzaya.model.quantised.header import METHOD
    from openzaya.model.quantised.matrices import container_bytes
    from openzaya.model.quantised.scheme import scheme_of

    if model != BUNDLED and model in NAMED_SHAPES:
        return None
    fields = read_fields(_folder(model))
    kept = fields.get("quantization_config")
    if not isinstance(kept, dict) or kept.get("quant_method") != METHOD:
        return None
    scheme, config = scheme_of(kept.get("scheme", ""), kept.get("group")), ZayaConfig.from_dict(fields)
    size = container_bytes(config, scheme, ITEM_BYTES.get(config.dtype, 2))
    return {"scheme": scheme.name, "group": scheme.group, "bytes": size}


def _folder(model: str) -> Path:
    # Not `find_model`: it brings torch along, and would fetch the weights of a hub id.
    bundled = Path(str(importlib.resources.files("openzaya"))) / "bundled" / "zaya1-tiny"
    folder = bundled if model == BUNDLED else Path(model).expanduser()
    if not folder.exists() and model.count("/") == 1:
        kept = kept_folder(model)
        folder = kept if origin_of(kept) else _fetched_config(model).parent
    if not folder.is_dir():
        raise ValueError(f"{model!r} is no model folder; give a folder, a hub id, or one of tiny, {_shape_names()}")
    return folder


def _shape_names() -> str:
    from openzaya.model.config import NAMED_SHAPES

    return ", ".join(name for name in NAMED_SHAPES if name != BUNDLED)


def _fetched_config(hub_id: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        return Path(hf_hub_download(hub_id, "config.json"))
    except (HTTPError, HFValidationError, OSError) as error:
        raise ValueError(
            f"{hub_id!r} is no model folder, and its config.json could not be fetched from huggingface.co "
            f"({type(error).__name__}); check the name and the connection, or give a folder"
        ) from None


def _plain_shape(config: ZayaConfig) -> dict[str, Any]:
    values = config.to_dict()
    return {name: value for name, value in values.items() if name != "layer_types"} | {
        "sliding_layers": sum(kind == "hybrid_sliding" for kind in config.layer_types)
    }


def _print_table(
    model: str,
    config: ZayaConfig,
    sizes: ModelInfo,
    machine: Machine,
    stored: dict[str, Any] | None,
    here: Sequence[Outlook],
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from openzaya.bench.outlook import SHARE_IN_CORE, SHARE_IN_TORCH

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    sections = (
        (f"{model}", _shape_rows(config, stored)),
        ("parameters", _parameter_rows(config, sizes)),
        ("memory", _memory_rows(config, sizes)),
        ("this machine", _machine_rows(machine)),
    )
    for title, rows in sections:
        console.print(Text(title, style="bold cyan"))
        table = Table(box=None, show_header=False, padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column()
        for name, value in rows:
            table.add_row(Text(name), Text(value))
        console.print(table)
    console.print(Text("what fits here, and how fast", style="bold cyan"))
    console.print(_table_of(here))
    for each in here:
        if each.refusal:
            console.print(Text(f"  {_way(each)}: {each.refusal}", style="dim"))
    if any(each.tokens_a_second for each in here):
        console.print(
            Text(
                f"  tokens/s is an estimate for one sequence with little context: {machine.probe} of memory just now, "
                f"times {SHARE_IN_CORE:g} in the core or {SHARE_IN_TORCH:g} in torch, over the bytes that a token "
                "needs; openzaya bench decode measures it",
                style="dim",
            )
        )


def _table_of(here: Sequence[Outlook]) -> Table:
    """A row for each way of keeping the weights that the shape allows."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2), header_style="dim")
    for column in ("weights", "runs in", "on disk", "in memory", "room for", "tokens/s"):
        table.add_column(column, justify="left" if column in ("weights", "runs in") else "right")
    for each in here:
        if each.refusal or each.disk_bytes is None or each.memory_bytes is None:
            continue
        speed = "-" if each.tokens_a_second is None else f"about {rate(each.tokens_a_second)}"
        table.add_row(
            _way(each), each.executor, byte_size(each.disk_bytes), byte_size(each.memory_bytes), _room(each), speed
        )
    return table


def _room(each: Outlook) -> str:
    if each.fits is None:
        return "not known"
    plural = "s" if each.sequences != 1 else ""
    return f"{each.sequences:,} sequence{plural} of {each.sequence_tokens:,}" if each.fits else "does not fit"


def _way(each: Outlook) -> str:
    return f"{each.scheme}, groups of {each.group}" if each.group else each.scheme


def _shape_rows(config: ZayaConfig, stored: dict[str, Any] | None) -> list[tuple[str, str]]:
    sliding = sum(kind == "hybrid_sliding" for kind in config.layer_types)
    layers = f"{config.num_hidden_layers}"
    if sliding:
        layers += f", {sliding} of them with a window of {config.sliding_window:,} tokens"
    return [
        ("layers", layers),
        ("hidden width", f"{config.hidden_size:,}"),
        ("heads", f"{config.num_attention_heads} of queries, {config.num_key_value_heads} of keys and values, "
                  f"{config.head_dim} channels each"),
        ("experts", f"{config.num_experts} a layer, {config.moe_intermediate_size:,} wide, one a token"),
        ("vocabulary", f"{config.vocab_size:,} tokens"),
        ("context", f"{config.max_position_embeddings:,} tokens"),
        ("stored in", _stored_words(config, stored)),
    ]  # fmt: skip


def _stored_words(config: ZayaConfig, stored: dict[str, Any] | None) -> str:
    if stored is None:
        return config.dtype
    groups = f" in groups of {stored['group']}" if stored["group"] else ""
    return f"{stored['scheme']}{groups}, {byte_size(stored['bytes'])}; computed in {config.dtype}"


def _parameter_rows(config: ZayaConfig, sizes: ModelInfo) -> list[tuple[str, str]]:
    rows = [
        ("all", count(sizes.total)),
        ("without embedding", count(sizes.without_embedding)),
        ("active a token", f"{count(sizes.active)}, embedding not counted"),
    ]
    return rows + [(f"  {part}", count(elements)) for part, elements in sizes.parts.items()]


def _memory_rows(config: ZayaConfig, sizes: ModelInfo) -> list[tuple[str, str]]:
    from openzaya.model.info import sequence_bytes

    full = config.max_position_embeddings
    return [
        ("weights", ", ".join(f"{byte_size(size)} in {dtype}" for dtype, size in sizes.weight_bytes.items())),
        ("state a token", f"{sizes.key_value_bytes_per_token:,} bytes of keys and values in {config.dtype}"),
        ("state a sequence", f"{sizes.state_bytes_per_sequence:,} bytes of convolutions and delayed values"),
        ("full context", f"{byte_size(sequence_bytes(config, full, config.dtype))} for {full:,} tokens"),
    ]


def _machine_rows(machine: Machine) -> list[tuple[str, str]]:
    memory = "not known" if machine.memory_bytes is None else byte_size(machine.memory_bytes)
    if machine.available_bytes is not None:
        memory += f", {byte_size(machine.available_bytes)} available"
    devices = ", ".join(f"{each.name} ({byte_size(each.memory_bytes)})" for each in machine.devices) or "none"
    rows = [
        ("cores", str(machine.cores)),
        ("memory", f"{memory}; {machine.probe} does {byte_size(machine.bytes_per_second)}/s"),
        ("torch", machine.torch or "not installed: pip install 'openzaya[local]'"),
        ("compiled core", machine.no_core or "there"),
        ("accelerators", devices),
    ]
    return rows
