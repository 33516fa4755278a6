"""What each scheme of quantisation costs in quality, beside the unquantised model, on held-out problems and real text.

    python benchmarks/quantised.py [--model tiny] [--problems 20] [--text FILE…] [--passages 20] [--threads 1]
        [--out FILE]

Both models read the same held-out problems with their worked solutions, and passages of text: of the files of --text,
else of the standard library of this Python, evenly spread. Compared are the places where the solution is written, or
all of a passage: the divergence of the distributions of the next token (nats), the share of places where the
likeliest token is the same, and, for each layer, the share of tokens that the router sends to the same expert. Every
scheme has two rows: its weights alone, and with activations rounded to 8 bits a token, as the compiled products
compute. A row of bfloat16 says what the usual format costs. Where a matrix is no multiple of a group, as in the
bundled model, the largest group that divides it stands in. Two models are in memory at a time. The last rows compare
types of keys and values in the compiled core, with weights of 8 bits, beside float32 there. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from openzaya.chat import ChatTemplate, Tokenizer
from openzaya.data.examples import Example, plain_example
from openzaya.engine.executor import StepBatch
from openzaya.engine.served import KV_DTYPES, ServedContainer
from openzaya.model import experts
from openzaya.model.checkpoint import find_model, load_model
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.quantised.matrices import matrices
from openzaya.model.quantised.quantise import quantise_checkpoint
from openzaya.model.quantised.rounding import restore_weights, round_activations, round_weights
from openzaya.model.quantised.scheme import SCHEMES, W8, Scheme
from openzaya.model.router import Routing
from openzaya.problems import generate

Examples = dict[str, list[Example]]
"""By kind: problems and text."""
_PASSAGE = 512
FAMILIES = {"linear_equation": (7, 9), "sorting": (4, 5), "arithmetic_chain": (8, 8)}
"""Those of the bundled model's card, with the same difficulties."""


def main() -> None:
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    folder = find_model(arguments.model)
    files = arguments.text or sorted(Path(os.__file__).parent.glob("*.py"))
    examples = {
        "problems": held_out(folder, arguments.problems),
        "text": passages(folder, files, arguments.passages),
    }
    truth = load_model(folder, dtype="float32")
    rows = [{"scheme": "bfloat16", **compare_all(truth, load_model(folder, dtype="bfloat16"), examples)}]
    rows += [row for scheme in SCHEMES for row in rows_of(scheme, folder, truth, examples)]
    rows += keys_and_values(folder, examples)
    report = {
        "benchmark": "quantised",
        "unit": "divergence in nats; shares of places (likeliest token) and of tokens (routing, a value a layer)",
        "settings": {name: str(value) for name, value in vars(arguments).items()},
        "places": {name: sum(int(one.learned.sum()) for one in some) for name, some in examples.items()},
        "machine": {"processor": platform.processor() or platform.machine(), "torch": torch.__version__},
        "rows": rows,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n", encoding="utf-8")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="a folder, a hub id, or tiny")
    parser.add_argument("--problems", type=int, default=20, help="of each family")
    parser.add_argument("--text", type=Path, nargs="+", help="files of text, UTF-8")
    parser.add_argument("--passages", type=int, default=20, help=f"of {_PASSAGE} tokens each")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="a file for the same JSON")
    return parser.parse_args()


def held_out(folder: Path, count: int) -> list[Example]:
    """Problems that no training saw, with their worked solutions."""
    tokenizer, template = Tokenizer.from_folder(folder), ChatTemplate.from_folder(folder)
    problems = [
        generate(family, seed, low + seed % (high - low + 1), split="held_out")
        for family, (low, high) in FAMILIES.items()
        for seed in range(count)
    ]
    return [plain_example(problem, tokenizer, template) for problem in problems]


def passages(folder: Path, files: Sequence[Path], count: int) -> list[Example]:
    """From the middles of `count` of the files that are long enough. Raises ValueError where none is."""
    tokenizer = Tokenizer.from_folder(folder)
    texts = [file.read_text(encoding="utf-8") for file in files]
    long = [text for text in texts if len(text) > 8 * _PASSAGE]
    if not long:
        raise ValueError(f"none of {len(files)} files has {8 * _PASSAGE} characters; name longer ones with --text")
    chosen = [long[place * len(long) // count] for place in range(min(count, len(long)))]
    pieces = [tokenizer.encode(text[len(text) // 2 :][: 8 * _PASSAGE])[:_PASSAGE] for text in chosen]
    return [Example(np.array(ids, dtype=np.int32), np.ones(len(ids), dtype=bool)) for ids in pieces]


def rows_of(scheme: Scheme, folder: Path, truth: ZayaForCausalLM, examples: Examples) -> Iterator[dict[str, Any]]:
    size, note = None, {}
    with tempfile.TemporaryDirectory() as room:
        try:
            quantise_checkpoint(folder, Path(room) / "q", scheme)
            size = (Path(room) / "q" / "model.safetensors").stat().st_size
            model = load_model(Path(room) / "q", dtype="float32")
        except ValueError as error:
            model, note = with_rounded_matrices(folder, scheme), {"stands_in": str(error)}
    facts = {"scheme": str(scheme), "bytes": size, **note}
    yield {**facts, "activations": "float32", **compare_all(truth, model, examples)}
    with rounded_activations(model):
        yield {**facts, "activations": "int8", **compare_all(truth, model, examples)}


def with_rounded_matrices(folder: Path, scheme: Scheme) -> ZayaForCausalLM:
    """The model with its matrices rounded in place, in the largest group that divides each."""
    model = load_model(folder, dtype="float32")
    weights = model.state_dict()
    for matrix in matrices(model.config):
        group = max(size for size in range(1, (scheme.group or 1) + 1) if matrix.columns % size == 0)
        fitting = replace(scheme, group=group)
        for part in matrix.parts:
            rows = weights[part.native].view(-1, matrix.columns)
            rows.copy_(restore_weights(*round_weights(rows, fitting), fitting))
    return model


@dataclass(slots=True)
class Tally:
    """What the places of all examples gave."""

    divergence: list[Tensor] = field(default_factory=list)
    same_token: list[Tensor] = field(default_factory=list)
    same_expert: list[list[Tensor]] = field(default_factory=list)


def compare_all(truth: ZayaForCausalLM, model: ZayaForCausalLM, examples: Examples) -> dict[str, Any]:
    return {name: compare(truth, model, some) for name, some in examples.items()}


def compare(truth: ZayaForCausalLM, model: ZayaForCausalLM, examples: list[Example]) -> dict[str, Any]:
    """The figures of one row on one kind of example."""
    tally = Tally()
    for example in examples:
        ids = torch.from_numpy(example.ids).long()[None]
        places = torch.from_numpy(example.learned)[1:].nonzero().squeeze(1)
        (expected, expected_routing), (found, routing) = read(truth, ids, places), read(model, ids, places)
        tally.divergence.append((expected.exp() * (expected - found)).sum(dim=1))
        tally.same_token.append(expected.argmax(1) == found.argmax(1))
        tally.same_expert.append([a == b for a, b in zip(expected_routing.chosen, routing.chosen)])
    return {
        **figures(tally),
        "same_expert": [float(torch.cat(layer).float().mean()) for layer in zip(*tally.same_expert)],
    }


def figures(tally: Tally) -> dict[str, float]:
    divergence = torch.cat(tally.divergence).clamp_min(0)
    return {
        "divergence": float(divergence.mean()),
        "divergence_99th": float(divergence.quantile(0.99)),
        "same_token": float(torch.cat(tally.same_token).float().mean()),
    }


def keys_and_values(folder: Path, examples: Examples) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as room:
        quantise_checkpoint(folder, Path(room) / "q", W8)
        cores = {name: ServedContainer(Path(room) / "q", 1, KV_DTYPES[name]) for name in ("float32", "float16", "int8")}
        for name in ("float16", "int8"):
            found = {
                kind: figures(compare_in_core(cores["float32"], cores[name], some)) for kind, some in examples.items()
            }
            yield {"scheme": "w8", "executor": "compiled", "keys_and_values": name, **found}


def compare_in_core(truth: ServedContainer, served: ServedContainer, examples: list[Example]) -> Tally:
    tally = Tally()
    for example in examples:
        places = torch.from_numpy(example.learned)[1:]
        expected, found = (read_in_core(one, example)[places] for one in (truth, served))
        tally.divergence.append((expected.exp() * (expected - found)).sum(dim=1))
        tally.same_token.append(expected.argmax(1) == found.argmax(1))
    return tally


def read_in_core(served: ServedContainer, example: Example) -> Tensor:
    """Log-probabilities of the token after each place but the last, float32 (S - 1, V), a token at a time."""
    pool = served.pool(memory=1 << 26, slots=1)
    executor, slot = served.executor(pool), pool.open()
    assert slot is not None
    pool.reserve(slot, len(example))
    slots = np.array([slot])
    steps = (executor.step(StepBatch(slots, np.array([token]))) for token in example.ids[:-1])
    return torch.cat([step.decode_logits.clone() for step in steps]).log_softmax(dim=-1)


def read(model: ZayaForCausalLM, ids: Tensor, places: Tensor) -> tuple[Tensor, Routing]:
    """Log-probabilities of the token after each place, float32 (places, V), and the routing of every token."""
    routing = Routing()
    hidden = model.hidden(ids, routing=routing)[0, places]
    return model.logits(hidden).log_softmax(dim=-1), routing


@contextmanager
def rounded_activations(model: ZayaForCausalLM) -> Iterator[None]:
    """While active, what enters a quantised matrix of `model` is rounded to 8 bits a token first."""
    plain_grouped, plain_logits = experts.grouped_linear, model.logits
    with ExitStack() as stack:
        for block in model.model.layers:
            attention = block.self_attn
            for layer in (attention.qkv_proj, attention):
                for name, projection in layer.named_children():
                    if isinstance(projection, nn.Linear) and name.endswith(("_proj", "_current", "_delayed")):
                        stack.enter_context(projection.register_forward_pre_hook(_round_first))
        experts.grouped_linear = lambda x, weight, tokens: plain_grouped(rounded(x), weight, tokens)
        model.logits = lambda hidden: plain_logits(rounded(hidden))
        stack.callback(partial(setattr, experts, "grouped_linear", plain_grouped))
        stack.callback(partial(delattr, model, "logits"))
        yield


def _round_first(_module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (rounded(arguments[0]), *arguments[1:])


def rounded(x: Tensor) -> Tensor:
    """`x` as 8 bits a token stand for it."""
    codes, scale = round_activations(x.flatten(0, -2))
    return (codes * scale[:, None]).view_as(x)


if __name__ == "__main__":
    main()
