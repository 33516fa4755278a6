"""A corpus written to shards: once, in an order that never changes, and from where it stopped if it was killed."""

from __future__ import annotations

import hashlib
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from openzaya.chat import ChatTemplate, Tokenizer
from openzaya.data.corpora import CorpusRecipe
from openzaya.data.documents import Document, DocumentReader
from openzaya.data.rollouts import Speaker
from openzaya.data.shards import SPLITS, Manifest, ShardBuilder, Shards, Split, read_manifest, write_manifest
from openzaya.data.sources import Position, Row, Source, open_source
from openzaya.locks import alone
from openzaya.mrsa.prompts import Prompts

SHARD_TOKENS = 1 << 26
"""Tokens after which a shard is closed; a kill loses the work of one."""

_ROWS_A_CHUNK = 64
_CHUNKS_AHEAD = 4
"""For each process."""

_TOLD_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class TokenisingProgress:
    """How far the writing of a corpus is; `share` and `seconds_left` are None where the source does not tell."""

    corpus: str
    documents: int
    tokens: int
    share: float | None
    tokens_per_second: float
    seconds_left: float | None

    def __str__(self) -> str:
        line = f"{self.corpus}: {self.documents:,} documents, {self.tokens:,} tokens written"
        line += f", {self.tokens_per_second:,.0f} tokens/s"
        if self.share is not None and self.seconds_left is not None:
            line += f", {self.share:.0%} done, about {_duration(self.seconds_left)} left"
        return line


OnTokenising = Callable[[TokenisingProgress], None]


def write_shards(
    name: str,
    recipe: CorpusRecipe,
    speaker: Speaker,
    folder: str | Path,
    *,
    workers: int = 1,
    shard_tokens: int = SHARD_TOKENS,
    report: OnTokenising = lambda progress: None,
) -> Shards:
    """The shards of a corpus in `folder`: opened where they are complete, else written, or written to their end.

    `workers` processes make tokens; the bytes on disk are the same for any number of them. Files of the source that
    are gone once the shards are complete are not missed. Another process that writes the same folder is waited for.
    Raises ValueError where the folder holds shards of another recipe, tokenizer, template or source, or damaged ones,
    and for a row that cannot be read.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    source = open_source(recipe)
    with alone(folder):
        fresh = _new_manifest(name, recipe, speaker, source)
        manifest = read_manifest(folder)
        if manifest is None:
            _refuse_other_files(folder)
            manifest = fresh
        else:
            _check_same(manifest, fresh, folder)
        if not manifest.complete:
            _Writing(manifest, recipe, speaker, folder, source, shard_tokens, report).write(workers)
    return Shards.open(folder)


class _Writing:
    """The writing of what the shards of a manifest lack."""

    def __init__(
        self,
        manifest: Manifest,
        recipe: CorpusRecipe,
        speaker: Speaker,
        folder: Path,
        source: Source,
        shard_tokens: int,
        report: OnTokenising,
    ) -> None:
        self.manifest, self.recipe, self.folder, self.source = manifest, recipe, folder, source
        self.reader = DocumentReader(recipe, speaker.tokenizer, speaker.template, speaker.prompts)
        self.shard_tokens, self.report = shard_tokens, report
        self.builders: dict[Split, ShardBuilder] = {}
        self.documents = sum(manifest.total(split, "documents") for split in SPLITS)
        self.tokens = self.tokens_before = sum(manifest.total(split, "tokens") for split in SPLITS)
        self.began = self.told = time.monotonic()
        self.share_before: float | None = None

    def write(self, workers: int) -> None:
        self._remove_unlisted()
        self._begin_shard()
        left_out = dict(self.manifest.left_out)
        read, end = self.manifest.rows_read, self.manifest.position
        for position, document in self._documents(workers):
            read, end = read + 1, position
            if isinstance(document, str):
                left_out[document] = left_out.get(document, 0) + 1
            else:
                self.builders["held_out" if document.held_out else "train"].add(document)
                self.documents += 1
                self.tokens += len(document)
            if sum(builder.tokens for builder in self.builders.values()) >= self.shard_tokens:
                self._end_shard(position, read, left_out)
            self._tell(read)
        self._end_shard(end, read, left_out)
        self.manifest.complete = True
        write_manifest(self.folder, self.manifest)

    def _begin_shard(self) -> None:
        self.builders = {split: ShardBuilder(self.manifest, split) for split in SPLITS}

    def _end_shard(self, position: Position, read: int, left_out: dict[str, int]) -> None:
        number = 1 + max((int(shard.name.rpartition("-")[2]) for shard in self.manifest.shards), default=-1)
        entries = [builder.write(self.folder, number) for builder in self.builders.values()]
        self.manifest.shards += [entry for entry in entries if entry is not None]
        self.manifest.position, self.manifest.rows_read, self.manifest.left_out = position, read, dict(left_out)
        write_manifest(self.folder, self.manifest)
        self._begin_shard()

    def _documents(self, workers: int) -> Iterator[tuple[Position, Document | str]]:
        rows = self.source.rows(self.manifest.position)
        if self.recipe.documents is not None:
            rows = islice(rows, max(0, self.recipe.documents - self.manifest.rows_read))
        if workers <= 1:
            for position, row in rows:
                yield position, _read(self.reader, self.manifest.corpus, position, row)
            return
        # Chunks go out in order and are taken back in order, so that the shards are those of one process.
        with ExitStack() as stack:
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(
                ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=_sendable(self.reader))
            )
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)
            waiting: deque[tuple[list[Position], Future[list[Document | str]]]] = deque()
            while True:
                while len(waiting) < workers * _CHUNKS_AHEAD and (chunk := list(islice(rows, _ROWS_A_CHUNK))):
                    waiting.append(([place for place, _row in chunk], pool.submit(_work, self.manifest.corpus, chunk)))
                if not waiting:
                    return
                places, result = waiting.popleft()
                yield from zip(places, result.result())

    def _remove_unlisted(self) -> None:
        """Files of a shard that was being written when the process was killed."""
        listed = {shard.name for shard in self.manifest.shards}
        for path in self.folder.glob("*.npy*"):
            if path.name.partition(".")[0] not in listed:
                path.unlink()

    def _tell(self, read: int) -> None:
        now = time.monotonic()
        share = self.source.done
        if self.recipe.documents is not None:
            share = max(share or 0.0, read / self.recipe.documents)
        if self.share_before is None:
            self.share_before = share
        if now - self.told < _TOLD_SECONDS:
            return
        self.told = now
        seconds = now - self.began
        left = None
        if share is not None and self.share_before is not None and share > self.share_before:
            left = seconds / (share - self.share_before) * (1 - share)
        rate = (self.tokens - self.tokens_before) / seconds
        self.report(TokenisingProgress(self.manifest.corpus, self.documents, self.tokens, share, rate, left))


def _read(reader: DocumentReader, corpus: str, position: Position, row: Row) -> Document | str:
    try:
        return reader.read(row)
    except ValueError as error:
        file, place = position
        raise ValueError(f"row {place} of file {file + 1} of the corpus {corpus!r}: {error}") from error


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


# ---- worker processes

_reader: DocumentReader | None = None


def _sendable(reader: DocumentReader) -> tuple[Any, ...]:
    """What a reader is made of, without the compiled template, which no other process can be sent."""
    return reader.recipe, reader.tokenizer, reader.template.source, reader.template.tokens, reader.prompts


def _begin_worker(
    recipe: CorpusRecipe, tokenizer: Tokenizer, template: str, tokens: dict[str, str], prompts: Prompts
) -> None:
    global _reader
    _reader = DocumentReader(recipe, tokenizer, ChatTemplate(template, tokens), prompts)


def _work(corpus: str, chunk: Sequence[tuple[Position, Row]]) -> list[Document | str]:
    assert _reader is not None
    return [_read(_reader, corpus, position, row) for position, row in chunk]


# ---- whether a folder is this corpus's


def _new_manifest(name: str, recipe: CorpusRecipe, speaker: Speaker, source: Source) -> Manifest:
    form = ""
    if recipe.conversations:
        form = f"{speaker.template.source}\n{sorted(speaker.template.tokens.items())}"
    if recipe.tails is not None:
        form += speaker.prompts.digest
    return Manifest(
        corpus=name,
        recipe=recipe.model_dump(mode="json", exclude_defaults=True),
        recipe_hash=recipe.digest,
        tokenizer_hash=speaker.tokenizer.digest,
        template_hash=hashlib.sha256(form.encode()).hexdigest() if form else "",
        source_hash=source.fingerprint(),
        vocab_size=speaker.tokenizer.vocab_size,
        line_break=speaker.tokenizer.encode("\n"),
    )


def _check_same(found: Manifest, wanted: Manifest, folder: Path) -> None:
    remedy = "give another folder, or remove this one"
    if found.recipe_hash != wanted.recipe_hash:
        names = [name for name in {**found.recipe, **wanted.recipe} if name != "paths"]
        differ = [name for name in names if found.recipe.get(name) != wanted.recipe.get(name)]
        raise ValueError(f"{folder} holds shards of another corpus ({', '.join(differ)} differ); {remedy}")
    if found.tokenizer_hash != wanted.tokenizer_hash:
        raise ValueError(f"{folder} holds shards that another tokenizer made; {remedy}")
    if found.template_hash != wanted.template_hash:
        raise ValueError(f"{folder} holds shards with another chat template or other wordings; {remedy}")
    # Once complete, shards stand for files that need not be here any more.
    if found.source_hash != wanted.source_hash and not (found.complete and wanted.source_hash is None):
        raise ValueError(f"the source of {wanted.corpus!r} is no longer what {folder} was begun with; {remedy}")


def _refuse_other_files(folder: Path) -> None:
    others = [path.name for path in folder.iterdir() if not path.name.endswith((".npy", ".partial"))]
    if others:
        raise ValueError(f"{folder} holds other files ({sorted(others)[0]}); give a folder for the shards alone")
