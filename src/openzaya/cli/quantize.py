"""`openzaya quantize`: a checkpoint in 4 or 8 bits a weight."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openzaya.cli.byte_progress import follow_bytes
from openzaya.cli.exits import InputError, say
from openzaya.cli.figures import byte_size, duration
from openzaya.cli.journey import follow_journey

if TYPE_CHECKING:
    from openzaya.model.quantised.scheme import Scheme


def quantize(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="The checkpoint: a folder of either layout, a hub id, or tiny.")
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write.")],
    scheme: Annotated[
        str | None, typer.Option(metavar="w4|w8", help="Bits of a weight; the default is the one measured to be best.")
    ] = None,
    group: Annotated[
        int | None, typer.Option(metavar="32|128", help="Columns that share a scale, in w4; fewer are more exact.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing before a large download.")] = False,
) -> None:
    """Write a checkpoint with its matrices in 4 or 8 bits a weight.

    Tokenizer and template are copied along. DST appears whole or not at all, is loaded like any model folder, and a few
    tensors at a time are in memory. A model of the hub is quantised while it comes, and the same command goes on with
    what an earlier run left.
    """
    from openzaya.model.quantised.scheme import DEFAULT_SCHEME, scheme_of

    try:
        chosen = scheme_of(scheme or ("w4" if group else DEFAULT_SCHEME.name), group)
    except ValueError as error:
        raise InputError(f"--scheme and --group: {error}") from None
    from openzaya.model.hub.listing import is_hub_id

    began = time.monotonic()
    if is_hub_id(source):
        before = _from_the_hub(source, destination, chosen, yes=yes)
    else:
        before = _from_a_folder(source, destination, chosen)
    seconds = time.monotonic() - began
    after = (destination / "model.safetensors").stat().st_size
    if as_json:
        kept = {"scheme": chosen.name, "group": chosen.group, "source_bytes": before, "bytes": after}
        print(json.dumps({"destination": str(destination), **kept, "seconds": round(seconds, 3)}))
    else:
        sizes = f"{byte_size(after)} of weights where {byte_size(before)} were"
        say(f"{destination}: {chosen}, {sizes}, in {duration(seconds)}")


def _from_the_hub(source: str, destination: Path, scheme: Scheme, *, yes: bool) -> int:
    """Bytes of the weights that came."""
    from openzaya.model.hub.kept import prepare

    with follow_journey(yes=yes) as journey:
        return prepare(source, destination, scheme, journey=journey)


def _from_a_folder(source: str, destination: Path, scheme: Scheme) -> int:
    """Bytes of the weights that were read."""
    from openzaya.model.checkpoint import find_model
    from openzaya.model.quantised.quantise import quantise_checkpoint

    folder = find_model(source)
    with follow_bytes(f"writing {destination}") as progress:
        quantise_checkpoint(folder, destination, scheme, lambda step: progress(step.done, step.total))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
