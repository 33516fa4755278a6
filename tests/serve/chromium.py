"""A headless Chromium for tests, and what went wrong on its pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

PATH = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)

if PATH is None:
    pytest.skip("needs Chromium: apt-get install chromium", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")


@contextmanager
def launched() -> Iterator[Any]:
    """The browser. While it runs, `asyncio.run` cannot be used in this thread."""
    with sync_api.sync_playwright() as playwright:
        # The sandbox of Chromium cannot be had by root, and shared memory is small in containers.
        arguments = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        browser = playwright.chromium.launch(executable_path=PATH, args=arguments)
        sync_api.expect.set_options(timeout=60_000)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def page_of(browser: Any, **settings: Any) -> Iterator[Any]:
    """A page in a profile of its own; fails where a script failed there, or its policy had to forbid something."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **settings})
    page = context.new_page()
    page.set_default_timeout(60_000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if "Content Security" in message.text else None)
    try:
        yield page
        assert not wrong
    finally:
        context.close()
