"""Draws docs/images/playground.png, the picture of the playground in the README, from a run that really happens.

    python docs/images/make_playground.py [--problem TEXT] [--seed S] [--model DIR]

It needs Chromium and the Python package playwright.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).parent / "playground.png"
SIZE = {"width": 1180, "height": 900}


def main() -> None:
    """Serve, ask, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", default="Solve 3(x - 4) + 2(x + 5) = 2x + 25 for x.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="tiny")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "openzaya", "serve", "--port", "0", "--model", arguments.model]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as service:
        assert service.stderr is not None
        try:
            found = None
            while found is None:
                line = service.stderr.readline()
                assert line, "the service ended"
                found = re.search(r"at (http://\S+)/v1", line)
            draw(found.group(1), arguments.problem, arguments.seed)
        finally:
            service.kill()


def draw(address: str, problem: str, seed: int) -> None:
    """The page after the run."""
    path = next(path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name)))
    with sync_playwright() as playwright:
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=root)
        page = browser.new_page(viewport=SIZE)
        page.goto(address)
        page.wait_for_selector(".example")
        page.get_by_text("Settings").click()
        page.locator("#setting-seed").fill(str(seed))
        page.get_by_text("Settings").click()
        page.locator("#question").fill(problem)
        page.locator("#question").press("Enter")
        page.locator(".account.over").wait_for(timeout=300_000)
        page.locator("#question").blur()
        page.mouse.move(5, 5)
        page.wait_for_timeout(1000)
        page.evaluate("scrollTo({ top: 0, behavior: 'instant' })")
        page.screenshot(path=PICTURE)
        browser.close()


if __name__ == "__main__":
    main()
