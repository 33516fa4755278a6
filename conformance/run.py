"""Run clients and harnesses against `openzaya serve`, each in an environment of its own. `run.py --help` lists them."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ENVIRONMENTS = HERE / ".environments"

CONFIG = """
name = "zaya"
limits = { requests_at_once = 256 }
[mrsa]
preset = "default"
candidates = 3
tails = 2
rounds = 1
beta = 200
tau = 16
final_tokens = 300
"""


@dataclass(frozen=True)
class Suite:
    """What is installed, and what is run with the service's base URL in BASE_URL."""

    packages: Sequence[str]
    command: Sequence[str]
    node: bool = False
    bundled: bool = False
    """The service runs the bundled model, and not over the scripted upstream."""
    environment: str | None = None
    """Whose environment it shares; None: one of its own."""


SUITES = {
    "openai-oldest": Suite(["openai==1.40.0", "httpx<0.28", "pydantic>=2"], ["{python}", "openai_python.py"]),
    "openai-newest": Suite(["openai", "pydantic>=2"], ["{python}", "openai_python.py"]),
    "openai-node": Suite(["openai", "zod"], ["node", "openai_node.mjs"], node=True),
    "schemathesis": Suite(
        ["schemathesis"],
        [
            "{bin}/schemathesis", "run", "{root_url}/openapi.json", "--max-examples", "40", "--seed", "1",
            "--checks",
            "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
        ],
    ),
    "lm-eval": Suite(["lm-eval[api]", "tiktoken", "transformers"], ["{python}", "lm_eval_tasks.py"]),
    "lm-eval-likelihood": Suite(
        ["lm-eval[api]", "tiktoken", "transformers"], ["{python}", "lm_eval_likelihood.py"],
        bundled=True, environment="lm-eval",
    ),
    "inspect": Suite(["inspect_ai", "openai"], ["{python}", "inspect_task.py"]),
    "litellm": Suite(["litellm", "mcp"], ["{python}", "litellm_client.py"]),
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", choices=[*SUITES, "all"])
    parser.add_argument("--python", default=str(ROOT / ".venv/bin/python"), help="the one that has openzaya[serve]")
    chosen = parser.parse_args()
    failed = []
    for name in SUITES if chosen.suite == "all" else [chosen.suite]:
        print(f"== {name}", flush=True)
        if run(name, chosen.python) != 0:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "all passed")
    return 1 if failed else 0


def run(name: str, python: str) -> int:
    """Install and run one suite; its exit status."""
    suite = SUITES[name]
    folder = ENVIRONMENTS / (suite.environment or name)
    if suite.node:
        if shutil.which("npm") is None:
            print("there is no npm here (Debian: npm)")
            return 1
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "install", "--silent", "--no-save", "--prefix", folder, *suite.packages], check=True)
        # Modules are looked for beside the script.
        shutil.copy(HERE / suite.command[1], folder)
    else:
        if not (folder / "bin/python").exists():
            venv.create(folder, with_pip=True)
        install = [folder / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*install, *suite.packages], check=True)
    with serving(python, folder, bundled=suite.bundled) as (url, log):
        words = {"python": str(folder / "bin/python"), "bin": str(folder / "bin"), "root_url": url}
        command = [word.format(**words) for word in suite.command]
        environment = {
            **os.environ, "BASE_URL": f"{url}/v1", "UPSTREAM_LOG": str(log), "OPENAI_API_KEY": "none",
            "TOKENIZER": str(ROOT / "src/openzaya/bundled/zaya1-tiny"),
        }  # fmt: skip
        return subprocess.run(command, cwd=folder if suite.node else HERE, env=environment, check=False).returncode


@contextmanager
def serving(python: str, folder: Path, *, bundled: bool = False) -> Iterator[tuple[str, Path]]:
    """The URL of a service over the scripted upstream, and the file to which that writes what it is asked; with
    `bundled` of one that runs the bundled model."""
    log = folder / "upstream.jsonl"
    config = folder / "serve.toml"
    config.write_text(CONFIG, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}"}
    upstream = subprocess.Popen(
        [python, HERE / "upstream.py", log], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert upstream.stdout is not None
    address = json.loads(upstream.stdout.readline())["url"]
    source = [] if bundled else ["--backend", address, "--config", config]
    command = [python, "-m", "openzaya", "serve", "--port", "0", *source]
    service = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert service.stderr is not None
        said = ""
        while (found := re.search(r"at (http://\S+)/v1", said)) is None:
            line = service.stderr.readline()
            if not line:
                sys.exit(f"the service ended: {said}")
            said += line
        # Its log goes to a file, so that the pipe never fills up.
        with (folder / "serve.log").open("w") as kept:
            copying = subprocess.Popen(["cat"], stdin=service.stderr, stdout=kept)
            yield found.group(1), log
            service.terminate()
            service.wait(30)
            copying.wait(10)
    finally:
        for process in (service, upstream):
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
