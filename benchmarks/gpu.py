"""Decoding on a GPU at the shape of the 8B: bfloat16 and packed w4, each as a share of the GPU's memory bandwidth.

    python benchmarks/gpu.py [--model zaya1-8b] [--schemes bfloat16 w4] [--rows 1,16,64] [--repeats 7] [--save FILE]

Random weights are made where `--model` is a shape. Every measurement stands between two reads of the GPU's memory (the
probe, printed too). It is `openzaya bench decode --device cuda` once a scheme, with a table of both and whether the
steps ran as graphs. bfloat16 wants about 24 GB of GPU memory, w4 about 8.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    arguments = read_arguments()
    require_gpu()
    found = {scheme: measured(arguments, scheme) for scheme in arguments.schemes}
    print_table(found)
    if arguments.save:
        content = json.dumps({"benchmark": "gpu", "command": sys.argv, "schemes": found}, indent=2) + "\n"
        partial = arguments.save.with_name(arguments.save.name + ".part")
        partial.write_text(content)
        partial.replace(arguments.save)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="zaya1-8b", help="a folder, a hub id or a shape")
    parser.add_argument("--schemes", nargs="+", default=["bfloat16", "w4"], choices=["bfloat16", "w4", "w8"])
    parser.add_argument("--rows", default="1,16,64")
    parser.add_argument("--prompt", type=int, default=512, help="tokens before the decoded ones")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--save", type=Path)
    return parser.parse_args()


def require_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        sys.exit("torch sees no GPU here; run this where torch.cuda.is_available() is true (CUDA or ROCm)")


def measured(arguments: argparse.Namespace, scheme: str) -> dict[str, Any]:
    """The record of one scheme, in a process of its own, so that its memory is free again afterwards."""
    command = [
        sys.executable, "-m", "openzaya", "bench", "decode", arguments.model, "--device", arguments.device,
        "--scheme", scheme, "--rows", arguments.rows, "--prompt", str(arguments.prompt),
        "--repeats", str(arguments.repeats), "--json",
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with exit code {done.returncode}")
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def print_table(found: dict[str, dict[str, Any]]) -> None:
    print(f"{'weights':10} {'rows':>5} {'tokens/s':>10} {'of bandwidth':>13} {'of one row':>11}  probe GB/s")
    for scheme, record in found.items():
        probe = record["probe"]["gigabytes_a_second"]["median"]
        for row in record["decode"]:
            one = row["ratio_to_one_row"]["median"] if row["ratio_to_one_row"] else float("nan")
            print(
                f"{scheme:10} {row['rows']:5} {row['tokens_a_second']['median']:10.1f} "
                f"{row['share_of_bandwidth']['median']:13.3f} {one:11.2f}  {probe:.0f}"
            )


if __name__ == "__main__":
    main()
