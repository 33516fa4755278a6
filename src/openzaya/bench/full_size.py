"""From a checkpoint of full size to tokens, each step a process of its own whose memory is watched.

    random bfloat16 shards ─► openzaya quantize ─► the source is removed ─► openzaya solve, through Engine

The weights mean nothing; that they are written, quantised within the memory promised, mapped and computed with does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openzaya.bench.rollouts import PROBLEM
from openzaya.bench.synthetic import OnBytes, random_checkpoint
from openzaya.model.checkpoint import SHARD_BYTES, find_model
from openzaya.model.config import ZayaConfig
from openzaya.model.quantised.scheme import Scheme
from openzaya.model.sources import companions

OnStep = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Watched:
    """How a process went."""

    seconds: float
    peak_bytes: int
    """Of memory in use at once, pages of mapped files included."""


def watch(command: Sequence[str]) -> tuple[Watched, str]:
    """Run a command and watch its memory: that, and its standard output. Raises ValueError where it fails."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    # `solve` ends with 4 where no candidate found an answer, which random weights do not.
    if process.returncode not in (0, 4):
        raise ValueError(f"{' '.join(command)} ended with {process.returncode}; its own message says why")
    unit = 1 if sys.platform == "darwin" else 1024
    return Watched(round(time.perf_counter() - began, 1), usage.ru_maxrss * unit), output


def measure_full_size(
    config: ZayaConfig,
    scheme: Scheme,
    folder: Path,
    *,
    tokens: int = 32,
    max_shard_bytes: int = SHARD_BYTES,
    on_step: OnStep | None = None,
    progress: OnBytes | None = None,
) -> dict[str, Any]:
    """Figures of the whole way for a model of random weights in `folder`, which must be new and is removed again.

    Raises ValueError where a step fails or the disk is too full.
    """
    say = on_step or (lambda _step: None)
    source, quantised = folder / "source", folder / "quantised"
    folder.mkdir(parents=True)
    try:
        say("writing the source")
        random_checkpoint(source, config, max_shard_bytes=max_shard_bytes, progress=progress)
        for path in companions(find_model("tiny")):
            shutil.copyfile(path, source / path.name)
        shards = sorted(source.glob("*.safetensors"))
        source_bytes = sum(shard.stat().st_size for shard in shards)
        say("quantising")
        group = ("--group", str(scheme.group)) if scheme.group else ()
        program = (sys.executable, "-m", "openzaya")
        quantising, _ = watch([*program, "quantize", str(source), str(quantised), "--scheme", scheme.name, *group])
        shutil.rmtree(source)
        say("generating")
        solving, output = watch(
            [*program, "solve", PROBLEM, "--model", str(quantised), "--preset", "single",
             "--final-tokens", str(tokens), "--quiet", "--json"]
        )  # fmt: skip
        answer = json.loads(output)
        return {
            "scheme": str(scheme),
            "source": {"bytes": source_bytes, "shards": len(shards)},
            "quantised_bytes": (quantised / "model.safetensors").stat().st_size,
            "quantising": asdict(quantising),
            "generating": {
                **asdict(solving),
                "tokens": answer["usage"]["completion_tokens"],
                "seconds_after_loading": round(answer["seconds"], 1),
            },
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
