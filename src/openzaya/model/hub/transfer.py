"""Bytes of a file on the hub: whole files that go on from where an earlier run was, and ranges.

huggingface_hub lists, authenticates and connects; its own downloads begin a file of many gigabytes anew when the
process before was killed, so whole files are received here. What is received is `NAME.part` until its size and its
hash are those that the hub states.
"""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import Any

from openzaya.model.hub.listing import HubFile, HubUnreachable, Listing, hub_name, told

_CHUNK = 1 << 20
_TIMEOUT = 20.0
"""Seconds without a byte after which a connection counts as lost."""
_TRIES = 5
"""Connections in a row that may be lost without having brought a byte."""
_MEASURED_SECONDS, _MEASURED_BYTES = 1.5, 64 << 20
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

OnBytes = Callable[[int], None]
"""Takes bytes that came (or, below zero, bytes that have to come again)."""


class Stopped(Exception):
    """A transfer was told to stop; what it received stays."""


def fetch(listing: Listing, file: HubFile, path: Path, on_bytes: OnBytes, stop: Event) -> None:
    """Receive `file` as `path`, going on from what an earlier run received of it.

    `on_bytes` is told of bytes that were there already too. Raises ValueError, in one sentence with the way out, where
    the connection fails for good, the disk is full, or size or hash differ from what the hub states; Stopped where
    `stop` is set.
    """
    part = path.with_name(f"{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    digest = digest_of(file)
    have = _hashed_so_far(part, file, digest, on_bytes, stop)
    lost = 0
    while have < file.size:
        before = have
        try:
            for start, chunk in _stream(listing, file, have, file.size):
                if stop.is_set():
                    raise Stopped
                if start < have:  # The server knows no ranges and began anew.
                    on_bytes(-have)
                    have, before, digest = 0, 0, digest_of(file)
                    part.unlink()
                with full_disk_told(part.parent, file.name, _of(have, file.size)):
                    _append(part, chunk)
                digest.update(chunk)
                have += len(chunk)
                on_bytes(len(chunk))
        except _LostConnection as error:
            lost = 0 if have > before else lost + 1
            if lost >= _TRIES:
                raise ValueError(
                    f"the connection to {hub_name()} was lost after {_of(have, file.size)} of {file.name} "
                    f"({error}); the same command goes on from there"
                ) from None
            if stop.wait(_pause(lost)):
                raise Stopped from None
    if file.size == 0:
        part.touch()
    check_hash(listing, file, digest, part)
    part.replace(path)


def verify(file: HubFile, path: Path, on_bytes: OnBytes, stop: Event) -> bool:
    """Whether a whole file is what the hub states; `on_bytes` is told of its bytes, and takes them back where not."""
    digest = digest_of(file)
    size = _take_in(path, digest, on_bytes, stop)
    if digest.hexdigest() == (file.sha256 or file.git_sha1 or digest.hexdigest()):
        return True
    on_bytes(-size)
    return False


def read_range(listing: Listing, file: HubFile, start: int, end: int) -> bytes:
    """Bytes `start` to `end` (exclusive) of a file. Raises ValueError as `told` does, and where the connection fails
    for good."""
    for lost in range(_TRIES):
        received = bytearray()
        try:
            for place, chunk in _stream(listing, file, start, end):
                received += chunk[max(0, start - place) :]
                if len(received) >= end - start:
                    break
            return bytes(received[: end - start])
        except _LostConnection as error:
            reason = error
            time.sleep(_pause(lost))
    raise HubUnreachable(f"the connection to {hub_name()} was lost ({reason}); run the same command again")


def measure_speed(listing: Listing, file: HubFile) -> float | None:
    """Bytes a second at which `file` comes, by its first second and a half; None where too little came."""
    came, first, now = 0, 0.0, 0.0
    with suppress(_LostConnection):
        for _place, chunk in _stream(listing, file, 0, min(file.size, _MEASURED_BYTES)):
            now = time.monotonic()
            # What the first chunk took is the way there and back, not the speed.
            first, came = (now, 0) if not first else (first, came + len(chunk))
            if now - first > _MEASURED_SECONDS or came > _MEASURED_BYTES:
                break
    return came / (now - first) if came and now > first else None


def digest_of(file: HubFile) -> Any:
    """A hash in progress, of the kind that the hub states for `file`."""
    if file.sha256 is not None:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)


def check_hash(listing: Listing, file: HubFile, digest: Any, received: Path) -> None:
    """Raises ValueError, having removed what was received, where its hash is not the one that the hub states."""
    wanted = file.sha256 or file.git_sha1
    if wanted is not None and digest.hexdigest() != wanted:
        received.unlink()
        raise ValueError(
            f"{file.name} of {listing.repository} was damaged on its way (its hash is not the one that {hub_name()} "
            "states) and was removed; the same command downloads it again"
        )


def _pause(lost: int) -> float:
    """Seconds before the next connection."""
    return min(8.0, 0.5 * 2.0**lost)


class _LostConnection(Exception):
    """The connection failed, or the server has too much to do; worth another try."""


def _stream(listing: Listing, file: HubFile, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Bytes `start` to `end` of a file as they come, each chunk with where it begins; all of the file from servers that
    know no ranges. Raises _LostConnection, and ValueError for what another try does not help."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    place = start
    try:
        with _response(listing, file, start, end) as response:
            if response.status_code == 200:
                place, end = 0, file.size
            # Without a size, so that what came before an accident is not lost in a buffer.
            for chunk in response.iter_raw():
                yield place, chunk
                place += len(chunk)
    except HfHubHTTPError as error:
        if error.response.status_code not in _TRANSIENT:
            with told(listing.repository):
                raise
        raise _LostConnection(f"status {error.response.status_code}") from None
    except (HTTPError, ConnectionError, TimeoutError) as error:
        raise _LostConnection(str(error) or type(error).__name__) from None
    if place < end:
        raise _LostConnection("the server ended it early")


@contextmanager
def _response(listing: Listing, file: HubFile, start: int, end: int) -> Iterator[Any]:
    """A response with bytes `start` to `end` of a file, or all of it; raises the errors of huggingface_hub.

    Raises ValueError where the server has another size for the file than the listing.
    """
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    url = hf_hub_url(listing.repository, file.name, revision=listing.commit, endpoint=constants.ENDPOINT)
    # The bytes as they are stored: sizes, ranges and hashes are of these.
    headers = build_hf_headers() | {"Accept-Encoding": "identity", "Range": f"bytes={start}-{end - 1}"}
    with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT) as response:
        hf_raise_for_status(response)
        size = _whole_size(response)
        if size is not None and size != file.size:
            raise ValueError(
                f"{hub_name()} serves {file.name} of {listing.repository} with {size:,} bytes, where its listing has "
                f"{file.size:,}; the upload is cut short, tell its author"
            )
        yield response


def _whole_size(response: Any) -> int | None:
    """Bytes of the whole file, by the headers of a response with all or a part of it."""
    stated = response.headers.get("Content-Length") if response.status_code == 200 else None
    if response.status_code == 206:
        stated = response.headers.get("Content-Range", "").rpartition("/")[2]
    return int(stated) if stated and stated.isdigit() else None


def _hashed_so_far(part: Path, file: HubFile, digest: Any, on_bytes: OnBytes, stop: Event) -> int:
    """Bytes that an earlier run received of `file`, taken into `digest`."""
    if not part.is_file():
        return 0
    if part.stat().st_size > file.size:
        part.unlink()
        return 0
    return _take_in(part, digest, on_bytes, stop)


def _take_in(path: Path, digest: Any, on_bytes: OnBytes, stop: Event) -> int:
    """Take a file into `digest`; returns its bytes."""
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            if stop.is_set():
                raise Stopped
            digest.update(chunk)
            size += len(chunk)
            on_bytes(len(chunk))
    return size


def _append(part: Path, chunk: bytes) -> None:
    with part.open("ab", buffering=0) as file:
        left = memoryview(chunk)
        while left:
            left = left[file.write(left) or 0 :]


@contextmanager
def full_disk_told(folder: Path, name: str, done: str) -> Iterator[None]:
    """Raises a full disk as ValueError; `done` says how far `name` came."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise ValueError(
            f"the disk of {folder} is full after {done} of {name}; make room there, and the same command goes on from "
            "where it was"
        ) from None


def _of(have: int, size: int) -> str:
    return f"{have / 1e9:.2f} of {size / 1e9:.2f} GB" if size >= 1e7 else f"{have:,} of {size:,} bytes"
