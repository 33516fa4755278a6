"""Where the rows of a corpus come from, one after another in an order that never changes.

Every source can go on after any row, so that shards whose writing was killed are finished from where they stopped.
"""

from __future__ import annotations

import bz2
import glob
import gzip
import hashlib
import io
import json
import lzma
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from openzaya.data.corpora import CorpusRecipe
from openzaya.data.mixture import draw_problem

Row = Mapping[str, Any]

Position = tuple[int, int]
"""A file, and a row in it; of sources without files always file 0."""

STANDARD_LIBRARY = "{stdlib}"
"""In a path: the folder of Python's own standard library, program text that is on every machine."""

_ENDS = 1 << 16
"""Bytes at either end of a file by which its content is told apart from another of the same size."""

_ROWS_AT_ONCE = 1024


class Source(Protocol):
    """Rows in order."""

    done: float | None
    """Share of the source that has been read, as far as that can be told."""

    def rows(self, start: Position = (0, 0)) -> Iterator[tuple[Position, Row]]:
        """Each row from `start` on, with the position after it. Raises ValueError for what cannot be read."""
        ...

    def fingerprint(self) -> str | None:
        """SHA-256 that tells this content from other content; None where the files are not (or no longer) here."""
        ...


def open_source(recipe: CorpusRecipe) -> Source:
    """The source that a recipe describes; nothing is read yet."""
    if recipe.format == "problems":
        return _Problems(recipe)
    if recipe.format == "datasets":
        return _Datasets(recipe)
    return _Files(recipe)


class _Files:
    """Rows of files of one format."""

    def __init__(self, recipe: CorpusRecipe) -> None:
        self._recipe = recipe
        self._read = {"jsonl": _json_rows, "text": _text_rows, "parquet": _parquet_rows, "arrow": _arrow_rows}[
            recipe.format
        ]
        self.done: float | None = 0.0

    def rows(self, start: Position = (0, 0)) -> Iterator[tuple[Position, Row]]:
        paths = files_of(self._recipe.paths)
        for pattern, found in zip(self._recipe.paths, map(_matches, self._recipe.paths)):
            if not found:
                raise ValueError(f"no file matches {pattern!r}; correct the paths of the corpus")
        sizes = [path.stat().st_size for path in paths]
        for number in range(start[0], len(paths)):
            first = start[1] if number == start[0] else 0
            before = sum(sizes[:number])
            try:
                for place, (row, share) in enumerate(self._read(paths[number], self._recipe, first), first + 1):
                    self.done = (before + share * sizes[number]) / max(1, sum(sizes))
                    yield (number, place), row
            except OSError as error:
                raise ValueError(f"{paths[number]} cannot be read ({error.strerror or error})") from error
            self.done = (before + sizes[number]) / max(1, sum(sizes))

    def fingerprint(self) -> str | None:
        paths = files_of(self._recipe.paths)
        if not paths:
            return None
        digest = hashlib.sha256()
        for path in paths:
            size = path.stat().st_size
            with path.open("rb") as file:
                head = file.read(_ENDS)
                file.seek(max(0, size - _ENDS))
                digest.update(f"{path.name}\n{size}\n".encode() + head + file.read())
        return digest.hexdigest()


def files_of(patterns: Sequence[str]) -> list[Path]:
    """The files that the patterns name, each once: in the order of the patterns, and by name within one."""
    return list(dict.fromkeys(path for pattern in patterns for path in _matches(pattern)))


def _matches(pattern: str) -> list[Path]:
    pattern = pattern.replace(STANDARD_LIBRARY, sysconfig.get_path("stdlib"))
    found = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))
    return [Path(name) for name in found if Path(name).is_file()]


# ---- one reader a format: rows from number `first` on, each with the share of the file that has been read


def _json_rows(path: Path, recipe: CorpusRecipe, first: int) -> Iterator[tuple[Row, float]]:
    # Blank lines are no rows, but they count as places, so that a place is a line.
    with path.open("rb") as raw, _unpacked(path, raw) as file:
        size = max(1, path.stat().st_size)
        for number, line in enumerate(file):
            if number < first:
                continue
            try:
                row = json.loads(line) if line.strip() else {}
            except ValueError as error:
                raise ValueError(f"line {number + 1} of {path} is no JSON ({error}); correct or remove it") from None
            if not isinstance(row, dict):
                raise ValueError(f"line {number + 1} of {path} is no JSON object; correct or remove it")
            yield row, raw.tell() / size


def _text_rows(path: Path, recipe: CorpusRecipe, first: int) -> Iterator[tuple[Row, float]]:
    with path.open("rb") as raw, _unpacked(path, raw) as file:
        size = max(1, path.stat().st_size)
        reader = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="")
        for number, text in enumerate(_separated(reader, recipe.separator)):
            if number >= first:
                yield {"text": text}, raw.tell() / size


def _separated(reader: io.TextIOBase, separator: str | None) -> Iterator[str]:
    if separator is None:
        yield reader.read()
        return
    rest = ""
    while piece := reader.read(1 << 20):
        *whole, rest = (rest + piece).split(separator)
        yield from whole
    yield rest


def _parquet_rows(path: Path, recipe: CorpusRecipe, first: int) -> Iterator[tuple[Row, float]]:
    parquet = _library("pyarrow.parquet", "parquet")
    try:
        file = parquet.ParquetFile(path, memory_map=True)
    except Exception as error:  # the library has no common class for what is wrong with a file
        raise ValueError(f"{path} is no Parquet file ({error}); correct the paths of the corpus") from error
    with file:
        columns = _present(fields_of(recipe), file.schema_arrow.names)
        before, total = 0, max(1, file.metadata.num_rows)
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if before + rows > first:
                batches = file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=columns)
                yield from _from(first, before, total, batches)
            before += rows


def _arrow_rows(path: Path, recipe: CorpusRecipe, first: int) -> Iterator[tuple[Row, float]]:
    arrow = _library("pyarrow", "arrow")
    ipc = _library("pyarrow.ipc", "arrow")
    with arrow.memory_map(str(path)) as file:
        try:
            batches = _file_batches(ipc.open_file(file))
        except arrow.ArrowInvalid:
            file.seek(0)
            try:
                batches = iter(ipc.open_stream(file))
            except arrow.ArrowInvalid as error:
                raise ValueError(f"{path} is no Arrow file ({error}); correct the paths of the corpus") from error
        before = 0
        for batch in batches:
            if before + batch.num_rows > first:
                batch = batch.select(_present(fields_of(recipe), batch.schema.names))
                pieces = (batch.slice(start, _ROWS_AT_ONCE) for start in range(0, batch.num_rows, _ROWS_AT_ONCE))
                for row, _share in _from(first, before, 1, pieces):
                    yield row, file.tell() / max(1, file.size())
            before += batch.num_rows


def _file_batches(reader: Any) -> Iterator[Any]:
    return (reader.get_batch(number) for number in range(reader.num_record_batches))


def _from(first: int, before: int, total: int, batches: Iterator[Any]) -> Iterator[tuple[Row, float]]:
    """Rows of record batches of which the first has number `before`, from number `first` on."""
    for batch in batches:
        skipped = max(0, min(first - before, batch.num_rows))
        for number, row in enumerate(batch.slice(skipped).to_pylist(), before + skipped + 1):
            yield row, number / total
        before += batch.num_rows


class _Datasets:
    """Rows of a dataset that Hugging Face's library streams, or of a folder that it wrote."""

    def __init__(self, recipe: CorpusRecipe) -> None:
        self._recipe = recipe
        self.done: float | None = None

    def rows(self, start: Position = (0, 0)) -> Iterator[tuple[Position, Row]]:
        recipe = self._recipe
        datasets = _library("datasets", "datasets")
        try:
            if (Path(recipe.dataset or "") / "state.json").is_file():
                data = datasets.load_from_disk(recipe.dataset).to_iterable_dataset()
            else:
                data = datasets.load_dataset(
                    recipe.dataset, recipe.subset, split=recipe.split, revision=recipe.revision, streaming=True
                )
        except Exception as error:  # whatever its loaders raise
            raise ValueError(f"the dataset {recipe.dataset!r} cannot be opened ({error})") from error
        if data.column_names:
            data = data.select_columns(_present(fields_of(recipe), data.column_names))
        split = data.info.splits.get(recipe.split) if data.info.splits else None
        total = split.num_examples if split else None
        for place, row in enumerate(data.skip(start[1]), start[1] + 1):
            self.done = place / total if total else None
            yield (0, place), row

    def fingerprint(self) -> str | None:
        recipe = self._recipe
        return hashlib.sha256(repr((recipe.dataset, recipe.subset, recipe.split, recipe.revision)).encode()).hexdigest()


class _Problems:
    """Generated problems with their worked solutions, as conversations."""

    def __init__(self, recipe: CorpusRecipe) -> None:
        self._recipe = recipe
        self.done: float | None = 0.0

    def rows(self, start: Position = (0, 0)) -> Iterator[tuple[Position, Row]]:
        count = self._recipe.documents or 0
        for index in range(start[1], count):
            problem = draw_problem(self._recipe.families, self._recipe.seed, index)
            self.done = (index + 1) / count
            reply = {
                "role": "assistant",
                "reasoning_content": problem.worked.reasoning,
                "content": problem.reply(),
            }
            yield (0, index + 1), {"messages": [{"role": "user", "content": problem.question}, reply]}

    def fingerprint(self) -> str | None:
        # The recipe says all of it, save how the families generate: one instance of each tells that.
        digest = hashlib.sha256()
        for name, share in sorted(self._recipe.families.items()):
            problem = draw_problem({name: share}, self._recipe.seed, 0)
            digest.update(f"{problem.question}\n{problem.worked.reasoning}\n".encode())
        return digest.hexdigest()


def fields_of(recipe: CorpusRecipe) -> list[str]:
    """The fields of a row that a recipe reads."""
    if recipe.format == "problems":
        return ["messages"]
    names = [recipe.text_field, recipe.messages, recipe.question, recipe.answer, recipe.reasoning]
    names += [recipe.tools, recipe.tails, "task" if recipe.tails and recipe.task == "field" else None]
    return [name for name in names if name is not None]


def _present(wanted: Sequence[str], there: Sequence[str]) -> list[str]:
    missing = [name for name in wanted if name not in there]
    if missing:
        raise ValueError(f"there is no field {missing[0]!r}; the fields are {', '.join(there)}")
    return list(wanted)


def _unpacked(path: Path, raw: IO[bytes]) -> Any:
    match path.suffix:
        case ".gz":
            return gzip.open(raw)
        case ".bz2":
            return bz2.open(raw)
        case ".xz":
            return lzma.open(raw)
        case ".zst":
            arrow = _library("pyarrow", ".zst")
            return io.BufferedReader(arrow.CompressedInputStream(arrow.PythonFile(raw), "zstd"))
    return raw


def _library(name: str, what: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise ValueError(f"reading {what} needs {package}, which is not installed; install openzaya[train]") from None
