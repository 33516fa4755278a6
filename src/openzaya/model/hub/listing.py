"""What the hub says of a model: its revision and its files, and every refusal of the hub as one sentence."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import urlsplit

from openzaya.model.sources import TOKENIZER_FILES
from openzaya.model.storage import CONFIG, INDEX, SINGLE

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SMALL_FILES = (CONFIG, INDEX, *TOKENIZER_FILES)


class HubUnreachable(ValueError):
    """The hub gave no answer, or none may be asked for; the model itself may be fine."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a model on the hub."""

    name: str
    size: int
    sha256: str | None
    """Of files in large file storage, which weights are."""
    git_sha1: str | None
    """Of all others: that of the git object."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of one revision of a model that belong to its weights, its configuration and its tokenizer."""

    repository: str
    commit: str
    files: Mapping[str, HubFile]

    @property
    def small_files(self) -> list[HubFile]:
        """Configuration, index and tokenizer."""
        return [file for name, file in self.files.items() if not name.endswith(".safetensors")]

    def identity(self) -> str:
        """Of weights and configuration: a revision that changes only other files has the same."""
        kept = {
            name: file.sha256 or file.git_sha1
            for name, file in sorted(self.files.items())
            if name.endswith(".safetensors") or name in (CONFIG, INDEX)
        }
        return hashlib.blake2b(json.dumps(kept).encode(), digest_size=16).hexdigest()


def is_hub_id(name: str | Path) -> bool:
    """Whether `name` is spelled like a model of the hub and is nothing on this machine."""
    return bool(_HUB_ID.fullmatch(str(name))) and not Path(name).expanduser().exists()


def hub_name() -> str:
    """The host of the hub in use, as HF_ENDPOINT sets it."""
    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).netloc


def list_model(repository: str, *, offline: bool = False, timeout: float = 10.0) -> Listing:
    """The newest revision of a model. Raises ValueError as `told` does, and HubUnreachable where `offline`."""
    from huggingface_hub import HfApi, constants

    require_online(repository, offline=offline)
    with told(repository):
        found = HfApi(endpoint=constants.ENDPOINT).model_info(repository, files_metadata=True, timeout=timeout)
    files = {}
    for each in found.siblings or ():
        name = each.rfilename
        wanted = name.endswith(".safetensors") or any(fnmatch(name, pattern) for pattern in _SMALL_FILES)
        if wanted and "/" not in name and each.size is not None:
            sha256 = each.lfs.sha256 if each.lfs else None
            files[name] = HubFile(name, each.size, sha256, None if sha256 else each.blob_id)
    if CONFIG not in files or not {INDEX, SINGLE} & files.keys():
        raise ValueError(
            f"{repository} on {hub_name()} has no {CONFIG} with {SINGLE} or {INDEX}; give a model with safetensors"
        )
    return Listing(repository, found.sha or "main", files)


@contextmanager
def told(repository: str) -> Iterator[None]:
    """Raises what goes wrong with the hub as ValueError in one sentence, HubUnreachable where it gave no answer."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        RepositoryNotFoundError,
    )

    hub = hub_name()
    try:
        yield
    except GatedRepoError:
        raise ValueError(f"{repository} is gated; accept its terms on {hub} and set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise ValueError(
            f"{repository} is neither a folder here nor a model on {hub} (or it is private: set HF_TOKEN)"
        ) from None
    except HFValidationError as error:
        raise ValueError(f"{repository!r} is not a valid hub id ({error})") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise ValueError(f"{hub} refuses access to {repository} ({status}); check the rights of HF_TOKEN") from None
        raise HubUnreachable(f"{hub} answered with status {status} for {repository}; try again later") from None
    except (HTTPError, ConnectionError, TimeoutError) as error:
        raise HubUnreachable(
            f"{hub} cannot be reached ({str(error) or type(error).__name__}), and {repository} is not kept on this "
            "machine; check the connection, or give a folder that holds the model"
        ) from None


def require_online(repository: str, *, offline: bool = False) -> None:
    """Raises HubUnreachable where the caller or HF_HUB_OFFLINE forbids to ask the hub."""
    from huggingface_hub import constants

    if offline or constants.HF_HUB_OFFLINE:
        raise HubUnreachable(
            f"{repository} is not kept on this machine, and --offline or HF_HUB_OFFLINE forbids to download it; "
            "run it once without"
        )
