"""`openzaya info`: what a model weighs and keeps, and what this machine can do with it."""

from __future__ import annotations

import importlib.resources
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openzaya.cli.figures import byte_size, count
from openzaya.cli.options import BUNDLED
from openzaya.model.hub.places import kept_folder, origin_of

if TYPE_CHECKING:
    from openzaya.cli.machine import Machine
    from openzaya.model.config import ZayaConfig
    from openzaya.model.info import ModelInfo

_CACHED_BYTES = 128e6
"""Weights below this may live in the caches of a processor: then its memory does not bound the speed."""


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
    """Show what a model weighs, and what this machine can run.

    Shape, parameter counts, bytes of state a token; cores, memory, torch, and whether the model fits.
    """
    from openzaya.cli.machine import this_machine
    from openzaya.model.info import model_info

    config, stored = read_shape(model), read_stored(model)
    sizes, machine = model_info(config, config.dtype), this_machine()
    facts = {
        "model": model,
        "shape": _plain_shape(config),
        "sizes": asdict(sizes),
        "stored": stored,
        "machine": asdict(machine),
        "here": outlook(config, sizes, machine),
    }
    if as_json:
        print(json.dumps(facts))
    else:
        _print_table(model, config, sizes, machine, stored)


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


def outlook(config: ZayaConfig, sizes: ModelInfo, machine: Machine) -> dict[str, Any]:
    """What this machine can do with a model in its stored dtype, as plain values.

    `fits` is None where the memory is not known. `decode_bound` is about the most tokens a second that one sequence can
    have when every active weight, the head's among them, is read from memory once a token; None where the weights may
    stay in caches.
    """
    from openzaya.model.info import sequence_bytes

    weights = sizes.weight_bytes[config.dtype]
    item = weights / sizes.total
    read = (sizes.active + config.vocab_size * config.hidden_size) * item
    room = None if machine.available_bytes is None else machine.available_bytes - weights
    full = sequence_bytes(config, config.max_position_embeddings, config.dtype)
    return {
        "weight_bytes": weights,
        "fits": None if room is None else room > full,
        "sequence_bytes": full,
        "sequences_of_full_context": None if room is None else max(0, int(room // full)),
        "decode_bound": machine.bytes_per_second / read if weights > _CACHED_BYTES else None,
    }


def _plain_shape(config: ZayaConfig) -> dict[str, Any]:
    values = config.to_dict()
    return {name: value for name, value in values.items() if name != "layer_types"} | {
        "sliding_layers": sum(kind == "hybrid_sliding" for kind in config.layer_types)
    }


def _print_table(
    model: str, config: ZayaConfig, sizes: ModelInfo, machine: Machine, stored: dict[str, Any] | None
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    sections = (
        (f"{model}", _shape_rows(config, stored)),
        ("parameters", _parameter_rows(config, sizes)),
        ("memory", _memory_rows(config, sizes)),
        ("this machine", _machine_rows(config, sizes, machine)),
    )
    for title, rows in sections:
        console.print(Text(title, style="bold cyan"))
        table = Table(box=None, show_header=False, padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column()
        for name, value in rows:
            table.add_row(Text(name), Text(value))
        console.print(table)


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


def _machine_rows(config: ZayaConfig, sizes: ModelInfo, machine: Machine) -> list[tuple[str, str]]:
    here = outlook(config, sizes, machine)
    memory = "not known" if machine.memory_bytes is None else byte_size(machine.memory_bytes)
    if machine.available_bytes is not None:
        memory += f", {byte_size(machine.available_bytes)} available"
    devices = ", ".join(f"{each.name} ({byte_size(each.memory_bytes)})" for each in machine.devices) or "none"
    rows = [
        ("cores", str(machine.cores)),
        ("memory", f"{memory}; a copy moves {byte_size(machine.bytes_per_second)}/s"),
        ("torch", machine.torch or "not installed: pip install 'openzaya[local]'"),
        ("accelerators", devices),
    ]
    if here["fits"] is None:
        verdict = "not known on this system"
    elif here["fits"]:
        room = here["sequences_of_full_context"]
        verdict = f"yes, with room for {room:,} sequence{'s' if room > 1 else ''} of full context"
    else:
        verdict = f"no: {byte_size(here['weight_bytes'] + here['sequence_bytes'])} are needed; use a server (--backend)"
    rows.append(("fits here", verdict))
    if here["decode_bound"] is not None:
        speed = here["decode_bound"]
        rows.append(("speed", f"{speed:.1f} tokens/s a sequence at best, going by memory alone"))
    return rows
