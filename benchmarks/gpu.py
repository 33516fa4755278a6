"""A GPU at the shape of the 8B: decoding, and what training does between projections and attention.

    python benchmarks/gpu.py [--parts decode cca] [--model zaya1-8b] [--schemes bfloat16 w4] [--rows 1,16,64]
                             [--tokens 16384] [--repeats 7] [--save FILE]

decode: bfloat16 and packed w4, each as a share of the GPU's memory bandwidth.
Random weights are made where `--model` is a shape. Every measurement stands between two reads of the GPU's memory (the
probe, printed too). It is `openzaya bench decode --device cuda` once a scheme, with a table of both and whether the
steps ran as graphs. bfloat16 wants about 24 GB of GPU memory, w4 about 8.

cca: forward and backward of mean, convolutions, norm, rotation and delayed values of one layer, by the kernels and by
the torch form, in turns; the kernels' time too as a share of what copying as many bytes would take.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    arguments = read_arguments()
    require_gpu()
    record: dict[str, Any] = {"benchmark": "gpu", "command": sys.argv}
    if "decode" in arguments.parts:
        record["schemes"] = {scheme: measured(arguments, scheme) for scheme in arguments.schemes}
        print_table(record["schemes"])
    if "cca" in arguments.parts:
        record["cca"] = measured_cca(arguments)
        print_cca(record["cca"])
    if arguments.save:
        content = json.dumps(record, indent=2) + "\n"
        partial = arguments.save.with_name(arguments.save.name + ".part")
        partial.write_text(content)
        partial.replace(arguments.save)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["decode", "cca"], choices=["decode", "cca"])
    parser.add_argument("--tokens", type=int, default=16_384, help="of a microbatch, in rows of 4096")
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


# ---- between projections and attention ----

ROW = 4096
CCA_BYTES = {"forward": 6.3 * 1024, "forward and backward": 26.6 * 1024}
"""That the kernels move for a token of the 8B in bfloat16, by arithmetic (docs/model.md)."""


def measured_cca(arguments: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of both forms, by round, and gigabytes a second of a copy in the same round."""
    import torch

    stage, rows = CCAStage(torch.device(arguments.device), max(1, arguments.tokens // ROW)), []
    for kernels in (True, False):
        for backward in (False, True):
            for _ in range(3):  # compiles, and fills the memory pool
                stage.run(kernels, backward)
    for _ in range(arguments.repeats):
        row: dict[str, Any] = {"copy_gigabytes_a_second": stage.copied()}
        for kernels, form in ((True, "kernels"), (False, "torch")):
            row[form] = {
                "forward": stage.milliseconds(kernels, backward=False),
                "forward and backward": stage.milliseconds(kernels, backward=True),
            }
        rows.append(row)
    return {"gpu": torch.cuda.get_device_name(stage.device), "tokens": stage.tokens, "rounds": rows}


class CCAStage:
    """One layer of the 8B in bfloat16 with projections done, on packed rows of documents of some hundred tokens."""

    def __init__(self, device: Any, rows: int) -> None:
        import torch

        from openzaya.model.attention import Attention
        from openzaya.model.config import NAMED_SHAPES
        from openzaya.model.numerics import REPORT
        from openzaya.model.placement import place

        torch.manual_seed(0)
        config = NAMED_SHAPES["zaya1-8b"].with_(num_hidden_layers=1)
        self.device, self.tokens = device, rows * ROW
        self.module = Attention(config, 0, REPORT).to(device, torch.bfloat16)
        for parameter in self.module.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        widths = (config.query_size, config.key_value_size, config.key_value_size // 2, config.key_value_size // 2)
        made = {"device": device, "dtype": torch.bfloat16, "requires_grad": True}
        self.parts = [torch.randn(rows, ROW, width, **made) for width in widths]
        self.module.qkv_proj._parts = lambda _x: self.parts
        self.learned = [each for name, each in self.module.named_parameters() if "conv" in name or "temp" in name]
        documents = (torch.rand(rows, ROW, device=device) < 1 / 400).cumsum(1)
        self.placement = place(config, torch.zeros_like(documents), None, documents, None)
        self.gradients = [torch.randn_like(output) for output in self.run(False, backward=False)]

    def run(self, kernels: bool, backward: bool) -> Any:
        from openzaya.model import kernels as dispatch

        usual, dispatch.has_kernels = dispatch.has_kernels, lambda _x: kernels
        try:
            outputs = self.module._queries_keys_values(self.parts[0], self.placement, None)
        finally:
            dispatch.has_kernels = usual
        if backward:
            import torch

            torch.autograd.grad(outputs, [*self.parts, *self.learned], self.gradients)
        return outputs

    def milliseconds(self, kernels: bool, backward: bool) -> float:
        return self.timed(lambda: self.run(kernels, backward))

    def copied(self) -> float:
        """Gigabytes a second, read and written."""
        import torch

        source = torch.empty(1 << 29, dtype=torch.uint8, device=self.device)
        return 2 * source.numel() / 1e6 / self.timed(source.clone)

    def timed(self, work: Callable[[], Any], times: int = 10) -> float:
        import torch

        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(times):
            work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / times


def print_cca(found: dict[str, Any]) -> None:
    print(f"{'between projections and attention':34} {'kernels ms':>10} {'torch ms':>9} {'ratio':>6}  of a copy")
    for pass_, moved in CCA_BYTES.items():
        kernels, form = ([row[name][pass_] for row in found["rounds"]] for name in ("kernels", "torch"))
        copies = [moved * found["tokens"] / 1e6 / row["copy_gigabytes_a_second"] for row in found["rounds"]]
        ratio = median(slow / fast for slow, fast in zip(form, kernels))
        share = median(copy / fast for copy, fast in zip(copies, kernels))
        print(f"{pass_:34} {median(kernels):10.3f} {median(form):9.3f} {ratio:6.1f}  {share:9.2f}")


if __name__ == "__main__":
    main()
