"""A corpus as tokens on disk: shards of whole documents, read through memory maps, and the manifest that vouches.

A shard is three NumPy arrays: `tokens` (uint16, or uint32 for large vocabularies), `turns` (a row a turn: tokens of
prompt, opening, reasoning, closing and answer, and flags) and `documents` (first token and first turn of each, and the
end). Documents are kept whole and with the places of their reasoning, so that every context length trims them anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from openzaya.data.documents import Document
from openzaya.data.trimming import Turn, TurnLengths

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")
ARRAYS = ("tokens", "turns", "documents")
MANIFEST = "manifest.json"

LEARNED, TEXT = 1, 2
"""Flags of a turn."""


class ShardEntry(BaseModel):
    """One shard in the manifest; `sha256` is that of each of its files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    split: Split
    documents: int
    turns: int
    tokens: int
    sha256: dict[str, str]


class Manifest(BaseModel):
    """What a folder of shards holds, and of what it was made."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["openzaya-shards"] = "openzaya-shards"
    version: Literal[1] = 1
    corpus: str
    recipe: dict[str, Any]
    recipe_hash: str
    tokenizer_hash: str
    template_hash: str
    """Of the chat template and, where there are tails, the wordings of aggregation; empty for plain text."""
    source_hash: str | None
    vocab_size: int
    line_break: list[int]
    """Ids that end a reasoning which is cut."""
    shards: list[ShardEntry] = Field(default_factory=list)
    rows_read: int = 0
    left_out: dict[str, int] = Field(default_factory=dict)
    """Rows that gave no document, by why."""
    position: tuple[int, int] = (0, 0)
    """Where in the source the next shard begins."""
    complete: bool = False

    def total(self, split: Split, what: Literal["documents", "tokens", "turns"]) -> int:
        """How many there are in all shards of a split."""
        return sum(getattr(shard, what) for shard in self.shards if shard.split == split)

    @property
    def token_type(self) -> type[np.uint16] | type[np.uint32]:
        return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32


@dataclass(frozen=True)
class Shard:
    """One shard, mapped when it is first read."""

    folder: Path
    entry: ShardEntry

    @cached_property
    def tokens(self) -> NDArray[Any]:
        return self._map("tokens")

    @cached_property
    def turns(self) -> NDArray[np.uint32]:
        return self._map("turns")

    @cached_property
    def documents(self) -> NDArray[np.int64]:
        return self._map("documents")

    def lengths(self, document: int) -> list[TurnLengths]:
        """The parts of each turn of a document."""
        rows = self._turns_of(document)[:, :5].tolist()
        return [TurnLengths(*row) for row in rows]

    def ids(self, document: int) -> NDArray[Any]:
        """The tokens of a document, as they lie on disk."""
        return self.tokens[self.documents[document, 0] : self.documents[document + 1, 0]]

    def learned(self, document: int) -> NDArray[np.bool_]:
        """Which tokens of a document are learned: what is said in turns that are, never a prompt."""
        turns = self._turns_of(document).astype(np.int64)
        said = turns[:, 1:5].sum(axis=1)
        runs = np.stack([turns[:, 0], said], axis=1)
        flags = np.stack([np.zeros(len(turns), dtype=bool), (turns[:, 5] & LEARNED) > 0], axis=1)
        return np.repeat(flags.ravel(), runs.ravel())

    def read(self, document: int) -> list[Turn]:
        """The turns of a document."""
        ids = iter(self.ids(document).tolist())
        turns = []
        for *lengths, flags in self._turns_of(document).tolist():
            prompt, opening, reasoning, closing, answer = (tuple(islice(ids, length)) for length in lengths)
            turns.append(Turn(prompt, opening, reasoning, closing, answer, learned=bool(flags & LEARNED)))
        return turns

    @cached_property
    def texts(self) -> NDArray[np.bool_]:
        """Which documents are plain texts."""
        return (self.turns[self.documents[:-1, 1], 5] & TEXT) > 0

    def _turns_of(self, document: int) -> NDArray[np.uint32]:
        return self.turns[self.documents[document, 1] : self.documents[document + 1, 1]]

    def _map(self, array: str) -> NDArray[Any]:
        path = self.folder / f"{self.entry.name}.{array}.npy"
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read ({error}); {_REMEDY}") from error


_REMEDY = "remove the folder and let its corpus be written again"


@dataclass(frozen=True)
class Shards:
    """The shards of one corpus in a folder."""

    folder: Path
    manifest: Manifest
    _by_split: dict[Split, list[Shard]] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, folder: str | Path) -> Shards:
        """Open shards that are complete, having looked at the size of every file.

        Raises ValueError where there are none, they are not complete, or a file is missing or of another size.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if manifest is None:
            raise ValueError(f"{folder} holds no shards (there is no {MANIFEST}); write them first")
        if not manifest.complete:
            raise ValueError(f"the shards in {folder} are not complete; let the writing of their corpus go on")
        shards = cls(folder, manifest)
        for shard in shards.all():
            shards._check_sizes(shard)
        return shards

    def split(self, split: Split) -> list[Shard]:
        """The shards of the documents that are trained on, or held out."""
        if not self._by_split:
            for name in SPLITS:
                entries = [entry for entry in self.manifest.shards if entry.split == name]
                self._by_split[name] = [Shard(self.folder, entry) for entry in entries]
        return self._by_split[split]

    def all(self) -> list[Shard]:
        return [shard for split in SPLITS for shard in self.split(split)]

    def verify(self, report: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Read every byte and compare it with the manifest; `report` is told bytes done and bytes in all.

        Raises ValueError that names the first file which is not as it was written.
        """
        paths = [
            (self.folder / f"{shard.entry.name}.{array}.npy", shard.entry.sha256[array])
            for shard in self.all()
            for array in ARRAYS
        ]
        total, done = sum(path.stat().st_size for path, _wanted in paths), 0
        for path, wanted in paths:
            if hash_file(path) != wanted:
                raise ValueError(f"{path} is damaged (its SHA-256 is not that of the manifest); {_REMEDY}")
            done += path.stat().st_size
            report(done, total)

    def _check_sizes(self, shard: Shard) -> None:
        entry, token = shard.entry, np.dtype(self.manifest.token_type).itemsize
        sizes = {"tokens": entry.tokens * token, "turns": entry.turns * 24, "documents": (entry.documents + 1) * 16}
        for array, size in sizes.items():
            path = self.folder / f"{entry.name}.{array}.npy"
            if not path.is_file():
                raise ValueError(f"{path} is missing; {_REMEDY}")
            if path.stat().st_size - size not in range(_HEADER):
                raise ValueError(f"{path} is damaged (it has {path.stat().st_size:,} bytes); {_REMEDY}")


_HEADER = 257
"""More bytes than the header of a NumPy file has."""


class ShardBuilder:
    """Documents on their way to a shard of one split."""

    def __init__(self, manifest: Manifest, split: Split) -> None:
        self._manifest, self._split = manifest, split
        self._tokens: list[NDArray[Any]] = []
        self._turns: list[tuple[int, ...]] = []
        self._documents: list[tuple[int, int]] = [(0, 0)]

    @property
    def tokens(self) -> int:
        return self._documents[-1][0]

    def add(self, document: Document) -> None:
        """Take in one document."""
        ids: list[int] = []
        for turn in document.turns:
            ids += (*turn.prompt, *turn.opening, *turn.reasoning, *turn.closing, *turn.answer)
            self._turns.append((*turn.lengths, LEARNED * turn.learned + TEXT * document.text))
        self._tokens.append(np.asarray(ids, dtype=self._manifest.token_type))
        self._documents.append((self.tokens + len(ids), len(self._turns)))

    def write(self, folder: Path, number: int) -> ShardEntry | None:
        """Write the shard's files, each whole or not at all, and return its entry; None where there is no document."""
        if not self._tokens:
            return None
        name = f"{self._split}-{number:05}"
        arrays = {
            "tokens": np.concatenate(self._tokens),
            "turns": np.asarray(self._turns, dtype=np.uint32),
            "documents": np.asarray(self._documents, dtype=np.int64),
        }
        hashes = {array: write_array(folder / f"{name}.{array}.npy", values) for array, values in arrays.items()}
        return ShardEntry(
            name=name,
            split=self._split,
            documents=len(self._tokens),
            turns=len(self._turns),
            tokens=self.tokens,
            sha256=hashes,
        )


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder, or None where there is none. Raises ValueError where it is no manifest."""
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise ValueError(f"{path} is no manifest of shards or is damaged; {_REMEDY}") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a manifest, whole or not at all."""
    with whole(folder / MANIFEST) as path:
        path.write_text(json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False), encoding="utf-8")


def write_array(path: Path, values: NDArray[Any]) -> str:
    """Write an array as a NumPy file, whole or not at all; returns the file's SHA-256."""
    with whole(path) as partial:
        with partial.open("wb") as file:
            np.save(file, values, allow_pickle=False)
        digest = hash_file(partial)
    return digest


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` only when all of it is on disk."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def hash_file(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
