"""Where the tokens of an evaluation come from: models opened one at a time, told apart by their weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openzaya.backends.opening import open_backend
from openzaya.backends.protocol import Backend
from openzaya.evals.spec import EvalError, ModelSpec


class Sources:
    """The models of an evaluation. One is open at a time, so that two never compete for a machine's memory.

    `given` are backends of the caller's own, by model name; they stay open.
    """

    def __init__(self, models: Mapping[str, ModelSpec], given: Mapping[str, Backend]) -> None:
        """Raises EvalError where `given` names no model of the evaluation."""
        unknown = sorted(set(given) - set(models))
        if unknown:
            raise EvalError(f"a backend is given for {unknown[0]!r}, no model here; known are {', '.join(models)}")
        self._models, self._given = models, given
        self._open: tuple[str, Backend] | None = None

    async def get(self, name: str) -> Backend:
        """The backend of a model. Raises ValueError or BackendError where it cannot be opened."""
        if name in self._given:
            return self._given[name]
        if self._open is None or self._open[0] != name:
            await self.aclose()
            self._open = (name, await _opened(self._models[name]))
        return self._open[1]

    async def aclose(self) -> None:
        """Close what is open."""
        if self._open is not None:
            backend, self._open = self._open[1], None
            await backend.aclose()

    def identities(self) -> dict[str, dict[str, str]]:
        """What tells each model from others, for the header of the results."""
        found: dict[str, dict[str, str]] = {}
        for name, spec in self._models.items():
            if name in self._given:
                found[name] = {"model": self._given[name].capabilities.model or "unnamed"}
            elif spec.backend:
                found[name] = {"model": spec.backend_model or f"the model at {spec.backend[0]}"}
            else:
                found[name] = {"source": spec.source, "weights": weights_hash(spec.source, **finding(spec))}
        return found


async def _opened(spec: ModelSpec) -> Backend:
    key = os.environ.get(spec.api_key_env) if spec.api_key_env else None
    if spec.backend and spec.api_key_env and not key:
        raise EvalError(f"the environment variable {spec.api_key_env} is not set; set it to the server's key")
    options = (
        {} if spec.backend else {name: value for name, value in spec.engine.model_dump().items() if value is not None}
    )
    return await open_backend(
        spec.source,
        spec.backend,
        backend_model=spec.backend_model,
        api_key=key,
        api_key_env=spec.api_key_env,
        **options,
    )


def finding(spec: ModelSpec) -> dict[str, Any]:
    """The options of `find_weights`, which decide beside the name which folder is run."""
    options = spec.engine.model_dump()
    return {name: options[name] for name in ("dtype", "device", "memory") if options.get(name) is not None}


def weights_hash(source: str, **options: Any) -> str:
    """SHA-256 over the weight files of a model folder, in the order of their names; downloads a hub id first.

    `options` are those of `find_weights`.
    """
    from openzaya.engine.weights import find_weights

    folder = find_weights(source, **options)
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise EvalError(f"the model folder {folder} holds no safetensors file; give a folder with weights")
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
