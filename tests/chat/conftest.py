from __future__ import annotations

from pathlib import Path

import pytest

from openzaya.chat import Tokenizer, train_tokenizer

CORPUS = [
    f"Compute {a} + {b} = {a + b}.\n    Step {a % 7}: so x = -{b}, because naïve 日本語 🙂 {{}} \\boxed{{{a}}} holds.\n"
    for a, b in zip(range(3, 300, 7), range(900, 0, -13))
]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(CORPUS, 400, folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(tokenizer_folder)
