"""Models of the hub that are kept on this machine in quantised form, one folder each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openzaya.locks import alone
from openzaya.memory import memory_bytes
from openzaya.model.config import ZayaConfig
from openzaya.model.hub.journey import Journey, LoggedJourney
from openzaya.model.hub.listing import list_model
from openzaya.model.hub.places import kept_folder, origin_of
from openzaya.model.hub.plan import NeedOf
from openzaya.model.hub.preparation import Preparation
from openzaya.model.quantised.scheme import DEFAULT_SCHEME, Scheme
from openzaya.model.storage import SINGLE, check_replaceable

_CHECK_SECONDS = 3.0
"""The longest that a model which is kept waits for the hub's word whether there is a newer one."""


def quantised_model(
    repository: str, *, journey: Journey | None = None, offline: bool = False, need: NeedOf | None = None
) -> Path:
    """The kept folder of the model `org/name`, made ready first where there is none.

    One that is kept is used as it is; where the hub has other weights by now, `journey` is told. Its default is
    `LoggedJourney`. Raises ValueError, in one sentence with the way out, for whatever prevents it, and what
    `journey.begin` and `need` raise.
    """
    journey = journey or LoggedJourney()
    folder = kept_folder(repository)
    if not (origin := origin_of(folder)):
        prepare(repository, folder, journey=journey, offline=offline, need=need, only_if_absent=True)
        return folder
    _check_size(folder, origin)
    if need is not None:
        wanted, available = need(ZayaConfig.from_folder(folder), origin["size"]), memory_bytes()[1]
        if available is not None and available < wanted.least:
            journey.tell(f"{repository} has {wanted.words(available)}: it will run from the disk, very slowly")
    _tell_of_a_newer_one(repository, folder, origin, journey, offline)
    return folder


def prepare(
    repository: str,
    folder: Path,
    scheme: Scheme = DEFAULT_SCHEME,
    *,
    journey: Journey | None = None,
    offline: bool = False,
    need: NeedOf | None = None,
    only_if_absent: bool = False,
) -> int:
    """Make the model `org/name` of the hub the quantised `folder`, going on from where an earlier run was.

    Returns the bytes of its weights on the hub. Of processes that do this at once, one works and the others wait; with
    `only_if_absent` those then find it done. Raises ValueError as `quantised_model`.
    """
    journey = journey or LoggedJourney()
    check_replaceable(folder)
    listing = list_model(repository, offline=offline)
    with _working_folder(folder, repository, journey) as work:
        if only_if_absent and origin_of(folder):
            return 0
        preparation = Preparation(listing, folder, work, scheme)
        if preparation.quantised_already and not only_if_absent:
            raise ValueError(
                f"{repository} is quantised on the hub already; run it by its name, or give the checkpoint that it was "
                "made from"
            )
        journey.begin(preparation.plan(need))
        preparation.run(journey)
    return preparation.weight_bytes


@contextmanager
def _working_folder(folder: Path, repository: str, journey: Journey) -> Iterator[Path]:
    """The working folder of `folder`, for this process alone."""
    work = folder.absolute().with_name(f".{folder.name}.preparing")

    def wait() -> None:
        journey.tell(f"another process is making {repository} ready; waiting for it")

    while True:
        work.mkdir(parents=True, exist_ok=True)
        with alone(work, wait) as still_there:
            if not still_there:  # Whoever was done while this one waited has removed it.
                continue
            try:
                yield work
            finally:
                if not any(path.suffix in (".safetensors", ".part") for path in work.rglob("*")):
                    shutil.rmtree(work, ignore_errors=True)
            return


def _check_size(folder: Path, origin: dict[str, Any]) -> None:
    weights = folder / SINGLE
    size = weights.stat().st_size if weights.is_file() else 0
    if size != origin["size"]:
        raise ValueError(
            f"{weights} is cut short ({size:,} of {origin['size']:,} bytes); remove {folder}, and the same command "
            "makes it again"
        )


def _tell_of_a_newer_one(
    repository: str, folder: Path, origin: dict[str, Any], journey: Journey, offline: bool
) -> None:
    try:
        newest = list_model(repository, offline=offline, timeout=_CHECK_SECONDS)
    except ValueError:
        return  # What is kept runs without the hub.
    if newest.identity() != origin["identity"]:
        journey.tell(
            f"{repository} has other weights on the hub by now (revision {newest.commit[:7]}); running revision "
            f"{origin['commit'][:7]}, which is kept. To have the new one, remove {folder} and run the same command"
        )
