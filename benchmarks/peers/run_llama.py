"""How fast llama.cpp runs a GGUF file here, in tokens a second, as one JSON object.

    python benchmarks/peers/run_llama.py PROGRAMS MODEL.gguf [--rows 1 16 64] [--prompt 480] [--context 8160]
        [--tokens 32] [--threads N] [--flash-attention off on] [--kv-type f16]

PROGRAMS is the folder with llama-bench and llama-batched-bench (build_llama.sh makes `build/bin`). Rows decode
together, each after --prompt tokens of its own copy; one row is measured after --context tokens as well (0 leaves that
out), and the prompt by itself is the prefill. Every figure is measured with each setting of flash attention, and the
faster one counts; `measured` keeps both. llama.cpp computes attention over lengths rounded up to 256, so a prompt and
the tokens after it should add up to a multiple, as the defaults do: 512 and 32 would cost what 768 do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Rates = dict[str, dict[str, float]]
"""Tokens a second: of `rows` by their number, of one row by its `contexts`, of `prefill` by the prompt's length."""


def main() -> None:
    arguments = read_arguments()
    measured: dict[str, Rates] = {}
    try:
        for setting in arguments.flash_attention:
            measured[setting] = measure(arguments, setting)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    report = {
        "peer": "llama.cpp",
        "version": version(arguments.programs),
        "model": arguments.model.name,
        "settings": {
            "threads": arguments.threads, "prompt": arguments.prompt, "tokens": arguments.tokens,
            "kv_type": arguments.kv_type,
        },
        **fastest(list(measured.values())),
        "measured": {f"flash attention {setting}": rates for setting, rates in measured.items()},
    }  # fmt: skip
    print(json.dumps(report, indent=2))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--prompt", type=int, default=480, help="tokens before those that are timed")
    parser.add_argument("--context", type=int, default=8160, help="tokens before those of one more row; 0 for none")
    parser.add_argument("--tokens", type=int, default=32, help="tokens that each row decodes")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--flash-attention", nargs="+", default=["off", "on"], choices=["off", "on"])
    parser.add_argument("--kv-type", default="f16", choices=["f16", "q8_0"])
    return parser.parse_args()


def measure(arguments: argparse.Namespace, flash_attention: str) -> Rates:
    """All figures with one setting of flash attention; raises ValueError where a program fails."""
    common = [
        "--model", str(arguments.model), "--threads", str(arguments.threads), "--flash-attn", flash_attention,
        "--cache-type-k", arguments.kv_type, "--cache-type-v", arguments.kv_type,
    ]  # fmt: skip
    most = max(arguments.rows)
    # Rows have a region each; llama.cpp rounds its length up to 256 tokens itself.
    context = most * (arguments.prompt + arguments.tokens)
    batched = output_of(
        arguments.programs / "llama-batched-bench", *common, "-c", context, "-npp", arguments.prompt,
        "-ntg", arguments.tokens, "-npl", ",".join(map(str, arguments.rows)), "-pps", "--output-format", "jsonl",
    )  # fmt: skip
    prompt = output_of(
        arguments.programs / "llama-bench", *common, "-p", arguments.prompt, "-n", 0, "-r", 1, "-o", "jsonl"
    )
    rates: Rates = {
        "rows": rates_of_rows(batched, arguments.rows),
        "prefill": {str(arguments.prompt): rate_of_test(prompt)},
        "contexts": {},
    }
    if arguments.context:
        deep = output_of(
            arguments.programs / "llama-bench", *common, "-p", 0, "-n", arguments.tokens, "-d", arguments.context,
            "-r", 1, "-o", "jsonl",
        )  # fmt: skip
        rates["contexts"][str(arguments.context)] = rate_of_test(deep)
    return rates


def output_of(program: Path, *options: object) -> str:
    """Standard output of a program, whose name is told on standard error; raises ValueError where it fails."""
    command = [str(program), *map(str, options)]
    print(f"{program.name} {' '.join(command[3:])}", file=sys.stderr)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ValueError(f"{program.name} ended with exit status {done.returncode}: {last}")
    return done.stdout


def rates_of_rows(output: str, rows: Sequence[int]) -> dict[str, float]:
    """Decoded tokens a second of all rows together, from JSON lines of llama-batched-bench among its other lines.

    Raises ValueError where a number of rows is missing, which the program leaves out when its context is too short.
    """
    found = {line["pl"]: line["speed_tg"] for line in json_lines(output) if "speed_tg" in line}
    if missing := sorted(set(rows) - set(found)):
        raise ValueError(f"llama-batched-bench did not measure {missing} rows; give fewer rows or a shorter --prompt")
    return {str(count): found[count] for count in rows}


def rate_of_test(output: str) -> float:
    """Tokens a second of the one test in JSON lines of llama-bench; raises ValueError where it is not one."""
    tests = [line for line in json_lines(output) if "avg_ts" in line]
    if len(tests) != 1:
        raise ValueError(f"llama-bench printed {len(tests)} tests instead of one: {output.strip()[:200]!r}")
    return float(tests[0]["avg_ts"])


def json_lines(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def fastest(measured: Sequence[Rates]) -> Rates:
    """The highest rate of each figure."""
    return {
        kind: {name: max(rates[kind][name] for rates in measured) for name in measured[0][kind]}
        for kind in ("rows", "contexts", "prefill")
    }


def version(programs: Path) -> str:
    """What build_llama.sh wrote down beside the programs."""
    file = programs.resolve().parents[1] / "version"
    return file.read_text(encoding="utf-8").strip() if file.is_file() else "unknown"


if __name__ == "__main__":
    main()
