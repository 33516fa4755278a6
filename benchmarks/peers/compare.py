"""The engine and another program measured in turn, and the ratios of their speeds, as one JSON object.

    python benchmarks/peers/compare.py --ours COMMAND --theirs COMMAND [--rounds 5] [--out FILE.json]

    --ours   "openzaya bench decode zaya1-8b --keep FOLDER --prompt 480 --context 8160 --repeats 1 --json"
    --theirs "python benchmarks/peers/run_llama.py BUILD/bin MODEL.gguf"

Each round runs both, so that both meet the same weather of the machine; who goes first changes from round to round. A
ratio is our median over theirs; its spread is over the ratios within the rounds. FILE has what the rounds so far gave,
anew after each. Either side may also be the name of a .json file with a report that was made before: then it counts as
the same in every round, and only the other side runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Rates = dict[str, float]
"""Tokens a second by the name of what was measured."""


def main() -> None:
    arguments = read_arguments()
    text = ""
    try:
        for report in compare(arguments.ours, arguments.theirs, arguments.rounds):
            text = json.dumps(report, indent=2)
            if arguments.out is not None:
                partial = arguments.out.with_name(f".{arguments.out.name}.partial")
                partial.write_text(text + "\n", encoding="utf-8")
                partial.replace(arguments.out)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(text)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True, help="a command that prints openzaya's report, or a file with one")
    parser.add_argument("--theirs", required=True, help="a command of this folder, or a file with its report")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds is {arguments.rounds}; it must be 1 or more")
    return arguments


def compare(ours: str, theirs: str, rounds: int) -> Iterator[dict[str, Any]]:
    """Run both sides in turn, a report after each round; raises ValueError where one fails or nothing compares."""
    reports: dict[str, list[dict[str, Any]]] = {ours: [], theirs: []}
    loads = []
    began = time.monotonic()
    for number in range(rounds):
        loads.append(round(os.getloadavg()[0], 2))
        sides = (ours, theirs) if number % 2 == 0 else (theirs, ours)
        for side in sides:
            reports[side].append(report_of(side))
        left = (time.monotonic() - began) / (number + 1) * (rounds - number - 1)
        print(f"round {number + 1} of {rounds}, {left / 60:.0f} min left", file=sys.stderr)
        yield report_of_rounds(ours, theirs, reports, loads)


def report_of_rounds(
    ours: str, theirs: str, reports: dict[str, list[dict[str, Any]]], loads: Sequence[float]
) -> dict[str, Any]:
    figures = ratios(
        [rates_of_openzaya(report) for report in reports[ours]], [rates_of_peer(report) for report in reports[theirs]]
    )
    last = reports[theirs][-1]
    return {
        "benchmark": "peers",
        "peer": last["peer"],
        "unit": "tokens a second; medians of the rounds",
        "figures": figures,
        "rounds": len(loads),
        "load_before_each_round": list(loads),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform(terse=True)},
        "commands": {"driver": shlex.join(sys.argv), "ours": ours, "theirs": theirs},
        "reports": {"ours": reports[ours], "theirs": reports[theirs]},
    }


def report_of(side: str) -> dict[str, Any]:
    """The JSON object that a command prints or a file holds; what the command says meanwhile goes to standard error.

    Raises ValueError where the command fails or prints something else.
    """
    if side.endswith(".json") and Path(side).is_file():
        text = Path(side).read_text(encoding="utf-8")
    else:
        done = subprocess.run(shlex.split(side), stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise ValueError(f"exit status {done.returncode} of: {side}")
        text = done.stdout
    try:
        report = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON object ({error}) from: {side}") from None
    if not isinstance(report, dict):
        raise ValueError(f"no JSON object from: {side}")
    return report


def rates_of_openzaya(report: dict[str, Any]) -> Rates:
    """The figures of `openzaya bench decode --json` by the names of `rates_of_peer`.

    The cases with as many tokens as the prompt are those of several rows; the others are one row in a longer context.
    """
    prompt = report["prefill"]["tokens"]
    rates = {prefill_name(prompt): report["prefill"]["tokens_a_second"]["median"]}
    for case in report["decode"]:
        rates[decode_name(case["rows"], case["context"])] = case["tokens_a_second"]["median"]
    return rates


def rates_of_peer(report: dict[str, Any]) -> Rates:
    """The figures of a report of this folder: `rows` after the prompt, one row after `contexts`, and `prefill`."""
    prompt = report["settings"]["prompt"]
    rates = {prefill_name(tokens): rate for tokens, rate in report["prefill"].items()}
    rates |= {decode_name(rows, prompt): rate for rows, rate in report["rows"].items()}
    return rates | {decode_name(1, context): rate for context, rate in report["contexts"].items()}


def decode_name(rows: int | str, context: int | str) -> str:
    return f"decode, rows {rows}, context {context}"


def prefill_name(tokens: int | str) -> str:
    return f"prefill, tokens {tokens}"


def ratios(ours: Sequence[Rates], theirs: Sequence[Rates]) -> dict[str, Any]:
    """Medians of both sides and their ratio, of all that both measured; raises ValueError where that is nothing."""
    names = [name for name in theirs[0] if name in ours[0]]
    if not names:
        raise ValueError(
            f"nothing to compare: ours has {sorted(ours[0])}, theirs {sorted(theirs[0])}; give both the same --prompt"
        )
    found = {}
    for name in names:
        we, they = [rates[name] for rates in ours], [rates[name] for rates in theirs]
        within = [one / other for one, other in zip(we, they, strict=True)]
        found[name] = {
            "ours": spread(we),
            "theirs": spread(they),
            "ratio": {**spread(within), "median": rounded(statistics.median(we) / statistics.median(they))},
        }
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": rounded(statistics.median(values)), "low": rounded(min(values)), "high": rounded(max(values))}


def rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
