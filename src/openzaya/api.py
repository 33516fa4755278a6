"""One problem in, one Solution out: the Python face of `openzaya solve`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from openzaya.backends.opening import open_backend
from openzaya.backends.protocol import Backend, Message
from openzaya.mrsa.config import ConfigError, MrsaConfig, automatic_preset, preset
from openzaya.mrsa.events import OnEvent
from openzaya.mrsa.journal import JournalError, JournalSink, JsonLinesSink
from openzaya.mrsa.prompts import Prompts, load_prompts
from openzaya.mrsa.rounds import run
from openzaya.mrsa.solution import Solution
from openzaya.mrsa.tails import Tokenizer

BUNDLED_MODEL = "tiny"


def solve(problem: str | Sequence[Message], **options: Any) -> Solution:
    """`asolve` for callers without an event loop; takes the same options and raises the same errors."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(asolve(problem, **options))
    raise RuntimeError("solve was called inside a running event loop; await asolve there")


async def asolve(
    problem: str | Sequence[Message],
    *,
    model: str | Path = BUNDLED_MODEL,
    backend: str | Sequence[str] | Backend | None = None,
    backend_model: str | None = None,
    api_key: str | None = None,
    api_key_env: str | None = None,
    device: str = "cpu",
    preset: str = "auto",
    seed: int = 0,
    prompts: Prompts | str | Path | None = None,
    tokenizer: Tokenizer | None = None,
    on_event: OnEvent | None = None,
    journal: str | Path | None = None,
    resume: str | Path | None = None,
    **overrides: Any,
) -> Solution:
    """Solve one problem, or reply to one conversation, under Markovian RSA.

    Tokens come from `model` (the bundled `tiny`, a folder or a hub id) in this process, or from `backend`: the base
    URLs of OpenAI-compatible servers, or a `Backend` of your own, which stays open. `device` is where a model in this
    process runs, in the words of torch ("cpu", "cuda"). `journal` is a new file to keep the
    run in, `resume` the file of a run to go on with. `overrides` are settings of `MrsaConfig`; None keeps the preset's.

    Raises ConfigError, PromptError, JournalError or ValueError for bad input, BackendError where the source cannot be
    reached, and MrsaError where too many rollouts fail. A budget or a deadline is no error: see `finish_reason`.
    """
    wordings = load_prompts(prompts) if isinstance(prompts, str | Path) else prompts
    _check_preset(preset, seed, overrides)
    sink = _sink(journal, resume)
    try:
        async with _open_backend(model, backend, backend_model, api_key, api_key_env, device) as source:
            config = _configure(preset, source, model, seed, overrides)
            return await run(
                problem, config, source, prompts=wordings, tokenizer=tokenizer, sink=sink, on_event=on_event
            )
    finally:
        if sink is not None:
            await sink.aclose()


def _configure(name: str, source: Backend, model: str | Path, seed: int, overrides: dict[str, Any]) -> MrsaConfig:
    if name == "auto":
        device = str(getattr(source, "device", "cpu"))
        name = automatic_preset(str(model), local=source.capabilities.local, device=device)
    return preset(name, seed=seed, **overrides)


def _check_preset(name: str, seed: int, overrides: dict[str, Any]) -> None:
    """Refuse settings that are wrong under any circumstances before a model is loaded for nothing."""
    if name != "auto":
        preset(name, seed=seed, **overrides)


def _sink(journal: str | Path | None, resume: str | Path | None) -> JournalSink | None:
    if journal is not None and resume is not None and Path(journal) != Path(resume):
        raise ConfigError(
            f"journal is {journal} and resume is {resume}; a run goes on in the file it resumes, so give one"
        )
    if resume is not None:
        if not Path(resume).is_file():
            raise JournalError(f"there is no journal {resume} to resume; give --journal to start one")
        return JsonLinesSink(resume)
    if journal is not None:
        if Path(journal).exists() and Path(journal).stat().st_size > 0:
            raise JournalError(f"the journal {journal} exists already; resume it, or name a new file")
        return JsonLinesSink(journal)
    return None


@asynccontextmanager
async def _open_backend(
    model: str | Path,
    backend: str | Sequence[str] | Backend | None,
    backend_model: str | None,
    api_key: str | None,
    api_key_env: str | None,
    device: str,
) -> AsyncIterator[Backend]:
    if isinstance(backend, Backend):
        yield backend
        return
    urls = [] if backend is None else [backend] if isinstance(backend, str) else list(backend)
    source = await open_backend(
        str(model), urls, backend_model=backend_model, api_key=api_key, api_key_env=api_key_env, device=device
    )
    try:
        yield source
    finally:
        await source.aclose()
