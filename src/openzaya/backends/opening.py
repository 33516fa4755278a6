"""The one place that decides between the embedded engine and servers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openzaya.backends.protocol import Backend


async def open_backend(
    model: str = "tiny",
    urls: Sequence[str] = (),
    *,
    backend_model: str | None = None,
    api_key: str | None = None,
    api_key_env: str | None = None,
    **engine_options: Any,
) -> Backend:
    """A backend ready to be asked: the servers at `urls` where there are any, else `model` in this process.

    `engine_options` are those of `Engine`. Raises ValueError for a model or an address that cannot be read, and
    BackendError where no server can be reached. Close it after use.
    """
    if not urls:
        # Brings torch, which a run over servers never needs.
        from openzaya.backends.embedded import EmbeddedBackend

        return await EmbeddedBackend.open(model, **engine_options)
    from openzaya.backends.openai import OpenAIBackend

    served: Any = OpenAIBackend(urls, backend_model, api_key=api_key, api_key_env=api_key_env)
    try:
        await served.discover()
    except BaseException:
        await served.aclose()
        raise
    return served
