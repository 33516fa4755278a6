"""How fast transformers runs a ZAYA of random weights in bfloat16 here, in tokens a second, as one JSON object.

    python benchmarks/peers/run_transformers.py [--shape zaya1-8b] [--layers 4 12] [--rows 1] [--prompt 480]
        [--tokens 16] [--threads N] [--experts eager grouped_mm]

Every step of a decoder takes what embedding and head take, and the same again for each layer. So two small models of
--layers layers are timed one after the other, and the line through both gives the step of the whole shape: ZAYA1-8B in
bfloat16 needs 18 GB of memory, a model of 12 layers 7 GB. One number of layers, the shape's own, is timed as it is. A
step is the forward of the model with its cache, without sampling; each implementation of the experts is measured, and
the fastest counts.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from openzaya.model.config import NAMED_SHAPES, ZayaConfig

Seconds = dict[str, float]
"""Of one step by the number of rows, and of the `prefill` of one prompt."""


def main() -> None:
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    config = NAMED_SHAPES[arguments.shape]
    whole = config.num_hidden_layers
    timed = {layers: time_layers(config.with_(num_hidden_layers=layers), arguments) for layers in arguments.layers}
    try:
        seconds = {kind: at_layers({count: timed[count][kind] for count in timed}, whole) for kind in arguments.experts}
    except ValueError as error:
        sys.exit(str(error))
    measured = {kind: rates(found, arguments.prompt) for kind, found in seconds.items()}
    names = [str(rows) for rows in arguments.rows]
    report = {
        "peer": "transformers",
        "version": f"transformers {version('transformers')}, torch {torch.__version__}",
        "model": f"{arguments.shape} of {whole} layers in bfloat16, "
        + (f"from models of {arguments.layers} layers" if arguments.layers != [whole] else "whole"),
        "settings": {"threads": arguments.threads, "prompt": arguments.prompt, "tokens": arguments.tokens},
        "rows": {name: max(found[name] for found in measured.values()) for name in names},
        "contexts": {},
        "prefill": {str(arguments.prompt): max(found["prefill"] for found in measured.values())},
        "measured": {f"experts {kind}": found for kind, found in measured.items()},
        "seconds_a_step": {str(layers): found for layers, found in timed.items()},
    }
    print(json.dumps(report, indent=2))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="zaya1-8b", choices=sorted(NAMED_SHAPES))
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 12], help="one number, or two for a line")
    parser.add_argument("--rows", type=int, nargs="+", default=[1])
    parser.add_argument("--prompt", type=int, default=480, help="tokens before those that are timed")
    parser.add_argument("--tokens", type=int, default=16, help="steps that are timed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--experts", nargs="+", default=["eager", "grouped_mm"], help="implementations that transformers has"
    )
    arguments = parser.parse_args()
    whole = NAMED_SHAPES[arguments.shape].num_hidden_layers
    if len(set(arguments.layers)) != 2 and arguments.layers != [whole]:
        parser.error(f"--layers are {arguments.layers}; give two different numbers, or {whole} alone for the whole")
    return arguments


def time_layers(config: ZayaConfig, arguments: argparse.Namespace) -> dict[str, Seconds]:
    """Seconds of a step of a fresh model, by implementation of the experts."""
    import transformers

    theirs = transformers.AutoConfig.for_model(**{**config.to_dict(), "dtype": "bfloat16"})
    began = time.monotonic()
    model = transformers.AutoModelForCausalLM.from_config(theirs, dtype=torch.bfloat16).eval()
    print(f"{config.num_hidden_layers} layers made in {time.monotonic() - began:.0f} s", file=sys.stderr)
    found: dict[str, Seconds] = {}
    for kind in arguments.experts:
        model.set_experts_implementation(kind)
        found[kind] = {"prefill": time_prompt(model, arguments)}
        for rows in arguments.rows:
            found[kind][str(rows)] = time_step(model, rows, arguments)
        told = ", ".join(f"{name}: {seconds:.3f} s" for name, seconds in found[kind].items())
        print(f"{config.num_hidden_layers} layers, experts {kind}, {told}", file=sys.stderr)
    del model
    gc.collect()
    return found


@torch.inference_mode()
def time_prompt(model: Any, arguments: argparse.Namespace) -> float:
    """Seconds of a prompt of one row, after one that warms up."""
    for _ in range(2):
        began = time.perf_counter()
        model(drawn(model, 1, arguments.prompt), use_cache=True, logits_to_keep=1)
        seconds = time.perf_counter() - began
    return seconds


@torch.inference_mode()
def time_step(model: Any, rows: int, arguments: argparse.Namespace) -> float:
    """Median seconds of a step in which every row decodes one token, after two that warm up."""
    cache = model(drawn(model, rows, arguments.prompt), use_cache=True, logits_to_keep=1).past_key_values
    seconds = []
    for _ in range(2 + arguments.tokens):
        ids = drawn(model, rows, 1)
        began = time.perf_counter()
        model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[2:])


def drawn(model: Any, rows: int, tokens: int) -> torch.Tensor:
    """Ids that are drawn evenly, so that rows go to experts as different tokens do."""
    return torch.randint(0, model.config.vocab_size, (rows, tokens))


def at_layers(timed: Mapping[int, Seconds], layers: int) -> Seconds:
    """What a model of `layers` layers takes, on the line through one or two smaller ones.

    Raises ValueError where more layers took less time, which a busy machine can make happen.
    """
    if layers in timed:
        return timed[layers]
    (few, low), (many, high) = sorted(timed.items())
    found = {}
    for name, less in low.items():
        slope = (high[name] - less) / (many - few)
        if slope <= 0:
            raise ValueError(f"{many} layers took no longer than {few} ({name}); measure again on a quiet machine")
        found[name] = less + slope * (layers - few)
    return found


def rates(seconds: Seconds, prompt: int) -> dict[str, float]:
    """Tokens a second of the same."""
    return {name: (prompt if name == "prefill" else int(name)) / value for name, value in seconds.items()}


if __name__ == "__main__":
    main()
