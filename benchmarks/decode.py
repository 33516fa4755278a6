"""Decoding speed of the engine beside `transformers.generate` at the same shape, weights and batch, in one run.

    python benchmarks/decode.py [--batch 1 16 64 256] [--prompt 64] [--tokens 64] [--threads 2] [--skip-transformers]

Prints one JSON object. Trust the ratios: both sides run on the same machine within the same minutes.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from openzaya.engine.engine import Engine
from openzaya.model.checkpoint import save_model
from openzaya.model.config import NAMED_SHAPES
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.initialise import initialise


def main() -> None:
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    model = initialise(ZayaForCausalLM(NAMED_SHAPES[arguments.shape])).eval()
    generator = torch.Generator().manual_seed(0)
    shape = (max(arguments.batch), arguments.prompt)
    prompts = torch.randint(0, model.config.vocab_size, shape, generator=generator)
    theirs = None if arguments.skip_transformers else transformers_model(model)
    rows = []
    with Engine(model, max_batch=max(arguments.batch), memory=arguments.memory) as engine:
        for batch in arguments.batch:
            ours = tokens_per_second(partial(run_engine, engine, prompts[:batch], arguments.tokens), arguments.repeats)
            row: dict[str, Any] = {"batch": batch, "engine": ours}
            if theirs is not None:
                row["transformers"] = tokens_per_second(
                    partial(run_transformers, theirs, prompts[:batch], arguments.tokens), arguments.repeats
                )
                row["ratio"] = round(ours["wall"] / row["transformers"]["wall"], 2)
            rows.append(row)
    print(
        json.dumps(
            {
                "benchmark": "decode",
                "unit": "generated tokens a second, prompts included in the time; median of the repeats",
                "settings": vars(arguments),
                "machine": {"processor": platform.processor() or platform.machine(), "torch": torch.__version__},
                "rows": rows,
            },
            indent=2,
        )
    )


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="tiny", choices=sorted(NAMED_SHAPES))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens generated for each")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", default="2GiB")
    parser.add_argument("--skip-transformers", action="store_true")
    return parser.parse_args()


def tokens_per_second(run: Callable[[], int], repeats: int) -> dict[str, float]:
    """Medians by the clock and by processor time, which a busy machine distorts less."""
    run()
    wall, processor = [], []
    for _ in range(repeats):
        started, used = time.perf_counter(), time.process_time()
        tokens = run()
        wall.append(tokens / (time.perf_counter() - started))
        processor.append(tokens / (time.process_time() - used))
    middle = repeats // 2
    return {"wall": round(sorted(wall)[middle], 1), "per_processor_second": round(sorted(processor)[middle], 1)}


def run_engine(engine: Engine, prompts: torch.Tensor, tokens: int) -> int:
    engine.forget_prompts()
    outputs = engine.generate(prompts.tolist(), max_tokens=tokens, seed=0, ignore_eos=True)
    return sum(len(output.token_ids) for group in outputs for output in group)


def transformers_model(model: ZayaForCausalLM) -> Any:
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        save_model(model, folder)
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def run_transformers(model: Any, prompts: torch.Tensor, tokens: int) -> int:
    output = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=True,
        top_k=0,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        pad_token_id=0,
    )
    return int(output[:, prompts.shape[1] :].numel())


if __name__ == "__main__":
    main()
