"""One model on its way: shards come one by one, what is whole is quantised at once, what is used up is dropped.

Everything lies in one working folder, and any run of the same command goes on from what it finds there:

    hub/     config.json, tokenizer, the shards that are here or coming (NAME.part)
    kept/    the container as far as it is written; it becomes the kept folder in one rename
    done.jsonl, origin.json
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import Any

from openzaya.memory import memory_bytes
from openzaya.model.config import ZayaConfig, read_fields
from openzaya.model.hub.arriving import ArrivingContainer
from openzaya.model.hub.journey import Journey
from openzaya.model.hub.listing import Listing, hub_name
from openzaya.model.hub.meter import Meter
from openzaya.model.hub.places import ORIGIN
from openzaya.model.hub.plan import NeedOf, Plan, disk_free, gigabytes, most_at_once
from openzaya.model.hub.shard_header import read_shard_header
from openzaya.model.hub.speed import quantising_seconds
from openzaya.model.hub.transfer import fetch, full_disk_told, measure_speed, verify
from openzaya.model.quantised.growing import GrowingContainer
from openzaya.model.quantised.header import METHOD
from openzaya.model.quantised.scheme import Scheme
from openzaya.model.sources import companions, open_plain
from openzaya.model.storage import INDEX, SINGLE, put_in_place, write_json

_RENAMED = {SINGLE: "model-00001-of-00001.safetensors"}
"""A single file is one shard here, so that there is one way for all."""
_MEASURED_FROM = 30_000_000
"""Bytes of a download below which its time is not worth a measurement."""


class Preparation:
    """A model of the hub on its way to `folder`, by way of the working folder `work`."""

    def __init__(self, listing: Listing, folder: Path, work: Path, scheme: Scheme) -> None:
        """Brings what is small: configuration, tokenizer, the headers of the shards. Raises ValueError for a model that
        is no ZAYA, is damaged on the hub, or that `scheme` cannot hold."""
        self.listing, self.folder = listing, folder
        self._work, self._hub, self._kept = work, work / "hub", work / "kept"
        self._go_on_or_begin(scheme)
        names = self._fetch_small_files()
        method = read_fields(self._hub).get("quantization_config")
        self._container: GrowingContainer | ArrivingContainer
        if isinstance(method, dict) and method.get("quant_method") == METHOD:
            self._shards = {name: self._hub / name for name in names}
            self._container, self._scheme = ArrivingContainer(self._hub, self._kept / SINGLE), None
        else:
            self._shards = {name: self._hub / _RENAMED.get(name, name) for name in names}
            self._container, self._scheme = self._growing(scheme), scheme
        self._ahead = True

    def _growing(self, scheme: Scheme) -> GrowingContainer:
        headers = {
            path.name: read_shard_header(self.listing, self.listing.files[name]) for name, path in self._shards.items()
        }
        if SINGLE in self._shards:
            name = _RENAMED[SINGLE]
            write_json(self._hub / INDEX, {"weight_map": dict.fromkeys(headers[name].keys(), name)})
        try:
            weights = open_plain(self._hub, headers)
        except ValueError as error:
            raise self._unfit(error) from None
        try:
            return GrowingContainer(self._kept / SINGLE, self._work / "done.jsonl", weights, scheme)
        except ValueError as error:
            name = self.listing.repository
            raise ValueError(
                f"{name} cannot be kept in {scheme} ({error}); run it as it is: openzaya convert {name} FOLDER, and "
                "give that folder"
            ) from None

    @property
    def quantised_already(self) -> bool:
        """Whether the model is used as it lies on the hub."""
        return self._scheme is None

    @property
    def weight_bytes(self) -> int:
        """Of all shards, on the hub."""
        return sum(self.listing.files[name].size for name in self._shards)

    # ---- the plan ----

    def plan(self, need: NeedOf | None) -> Plan:
        """What is still to do. Raises ValueError where the disk is too full, and what `need` raises."""
        cached, order = self._find_cached(), self._order()
        sizes = {name: 0 if name in cached else self.listing.files[name].size for name in self._shards}
        here = {name for name in order if self._shards[name].is_file() or name in cached}
        parts = sum(_size(_part(self._shards[name])) for name in order)
        taken = sum(sizes[name] for name in here) + parts + _size(self._kept / SINGLE)
        names = {path: name for name, path in self._shards.items()}
        awaited = [frozenset(names[path] for path in files) for files in self._container.awaited]

        def more(ahead: bool) -> int:
            at_once = most_at_once(order, sizes, awaited, here, ahead=ahead)
            return max(0, self._container.size + at_once - taken)

        free = disk_free(self._work)
        self._ahead = more(True) <= free
        if more(self._ahead) > free:
            raise ValueError(
                f"{self.listing.repository} needs {gigabytes(more(False))} of disk while it is made ready and "
                f"{gigabytes(free)} are free at {self.folder.parent}; make room there, or set XDG_CACHE_HOME to a "
                "folder on another disk"
            )
        missing = [name for name in order if name not in here]
        whole = sum(self.listing.files[name].size for name in order)
        coming = sum(self.listing.files[name].size for name in missing) - parts
        speed = None
        if coming > _MEASURED_FROM:
            speed = measure_speed(self.listing, self.listing.files[missing[0]])
        return Plan(
            name=self.listing.repository,
            commit=self.listing.commit,
            hub=hub_name(),
            folder=self.folder,
            scheme=None if self._scheme is None else str(self._scheme),
            download_bytes=coming,
            here_bytes=whole - coming,
            shards=len(missing),
            disk_bytes=more(self._ahead),
            kept_bytes=self._kept_bytes,
            disk_free=free,
            memory=need(self._container.config, self._kept_bytes) if need else None,
            memory_available=memory_bytes()[1],
            bytes_per_second=speed,
            seconds=self._seconds(coming, speed, len(order)),
        )

    @property
    def _kept_bytes(self) -> int:
        """Weights of the finished folder."""
        return self._container.size or self.listing.files[SINGLE].size

    def _seconds(self, coming: int, speed: float | None, shards: int) -> float | None:
        """An estimate for download and quantising, which goes on beside it but for the last shard."""
        if coming > _MEASURED_FROM and speed is None:
            return None
        download = coming / speed if speed else 0.0
        if self._scheme is None:
            return download
        left = 1 - self._container.done_bytes / self._container.size
        rounding = quantising_seconds(self._container.config, self._scheme) * left
        if not self._ahead:
            return download + rounding
        return max(download, rounding) + rounding / max(1, shards)

    # ---- the work ----

    def run(self, journey: Journey) -> None:
        """Download, quantise and put the finished folder in its place.

        Raises ValueError where the connection fails for good, the disk is full or a file is damaged; whatever ends it,
        the next run goes on.
        """
        order = self._order()
        to_download = sum(self.listing.files[name].size for name in order)
        meter = Meter(journey, to_download, self._container.done_bytes, self._container.size)
        try:
            with full_disk_told(self._work, str(self.folder), "part"):
                self._quantise(order, meter)
                self._container.finish()
                self._put_in_place()
        except KeyboardInterrupt as error:
            error.add_note(f"what was downloaded is kept in {self._work}; the same command goes on from there")
            raise

    def _quantise(self, order: list[str], meter: Meter) -> None:
        coming: dict[str, Future[None]] = {}
        with self._container as container, self._downloads(meter) as download:
            for place, name in enumerate(order):
                for each in order[place : place + 2] if self._ahead else (name,):
                    if each not in coming and self._is_awaited(each):
                        coming[each] = download(each)
                if name not in coming:  # It was here already, and used up with an earlier one.
                    meter.came(self.listing.files[name].size)
                    continue
                coming[name].result()
                self._container.release()
                container.advance(meter.wrote)
                self._drop_used()

    @contextmanager
    def _downloads(self, meter: Meter) -> Iterator[Callable[[str], Future[None]]]:
        """What begins the download of a shard, in turn; all are stopped when the block ends early."""
        stop = Event()
        with ThreadPoolExecutor(1, "openzaya-download") as pool:

            def bring(name: str) -> None:
                file, path = self.listing.files[name], self._shards[name]
                cached = _cached(path)
                if path.is_file():
                    meter.came(file.size)
                elif cached.is_file() and verify(file, cached, meter.came, stop):
                    cached.rename(path)
                else:
                    fetch(self.listing, file, path, meter.came, stop)

            try:
                yield lambda name: pool.submit(bring, name)
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _drop_used(self) -> None:
        """Remove the shards that nothing awaits any more; of one in another program's cache, only the link to it."""
        awaited = frozenset().union(*self._container.awaited)
        for path in self._shards.values():
            if path not in awaited:
                path.unlink(missing_ok=True)
        self._container.release()

    def _put_in_place(self) -> None:
        self._container.write_config(self._kept)
        for path in companions(self._hub):
            shutil.copyfile(path, self._kept / path.name)
        write_json(self._kept / ORIGIN, self._origin() | {"size": _size(self._kept / SINGLE)})
        put_in_place(self._kept, self.folder)
        shutil.rmtree(self._work, ignore_errors=True)

    # ---- inside ----

    def _is_awaited(self, name: str) -> bool:
        return any(self._shards[name] in files for files in self._container.awaited)

    def _order(self) -> list[str]:
        """The shards that something awaits, by name."""
        awaited = frozenset().union(*self._container.awaited)
        return sorted(name for name, path in self._shards.items() if path in awaited)

    def _origin(self) -> dict[str, Any]:
        return {
            "repository": self.listing.repository,
            "commit": self.listing.commit,
            "identity": self.listing.identity(),
        }

    def _go_on_or_begin(self, scheme: Scheme) -> None:
        """Keep what an earlier run left where it was of the same weights, and none of it otherwise."""
        wanted = self._origin() | {"scheme": str(scheme)}
        found: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            found = json.loads((self._work / ORIGIN).read_text(encoding="utf-8"))
        if {**found, "commit": ""} != {**wanted, "commit": ""}:
            for path in self._work.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        elif found != wanted:
            for file in self.listing.small_files:
                (self._hub / file.name).unlink(missing_ok=True)
        self._hub.mkdir(exist_ok=True)
        write_json(self._work / ORIGIN, wanted)

    def _fetch_small_files(self) -> list[str]:
        """Bring all but the weights, check that it is a ZAYA, and return the names of the shards."""
        single = SINGLE in self.listing.files
        for file in self.listing.small_files:
            if not (single and file.name == INDEX) and not (self._hub / file.name).is_file():
                with full_disk_told(self._work, file.name, "part"):
                    fetch(self.listing, file, self._hub / file.name, lambda _bytes: None, Event())
        try:
            ZayaConfig.from_folder(self._hub)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise self._unfit(error) from None
        if single:
            return [SINGLE]
        try:
            weight_map = json.loads((self._hub / INDEX).read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(weight_map.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{INDEX} of {self.listing.repository} has no weight_map ({error})") from None
        if absent := [name for name in names if name not in self.listing.files]:
            raise ValueError(f"{self.listing.repository} lacks {absent[0]}, which its {INDEX} names; tell its author")
        return names

    def _unfit(self, error: Exception) -> ValueError:
        reason = str(error).replace(f"{self._hub}/", "").replace(f"{self._hub} ", "it ")
        return ValueError(f"{self.listing.repository} cannot be run: {reason}")

    def _find_cached(self) -> set[str]:
        """The shards that the cache of huggingface_hub has, each linked to until it is known to be whole."""
        from huggingface_hub import try_to_load_from_cache

        for name in self._order():
            path = self._shards[name]
            _cached(path).unlink(missing_ok=True)
            found = try_to_load_from_cache(self.listing.repository, name, revision=self.listing.commit)
            if isinstance(found, str) and not path.exists() and _size(Path(found)) == self.listing.files[name].size:
                with suppress(OSError):
                    _cached(path).symlink_to(Path(found).resolve())
        return {name for name, path in self._shards.items() if path.is_symlink() or _cached(path).is_symlink()}


def _cached(path: Path) -> Path:
    """The link to a shard in another program's cache, until it is checked and becomes `path`."""
    return path.with_name(f"{path.name}.cached")


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
