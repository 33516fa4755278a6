"""Load, save and convert checkpoints: native and legacy layout, one file or shards, quantised or not, safetensors only.

Which tensors there are is decided by the table in `openzaya.model.names`; how a folder's weights are read, by
`openzaya.model.sources`; how bytes reach the disk, by `openzaya.model.storage`. Nothing here ever unpickles.
"""

from __future__ import annotations

import importlib.resources
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from openzaya.model.config import SkipSemantics, ZayaConfig
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.hub.listing import is_hub_id, require_online, told
from openzaya.model.names import Layout, StoredTensor, expected_tensors
from openzaya.model.numerics import Numerics, numerics_profile
from openzaya.model.quantised.container import Container
from openzaya.model.quantised.packed_product import require_kernel
from openzaya.model.quantised.packed_weight import load_packed
from openzaya.model.sources import Source, archive_layout, companions, open_source
from openzaya.model.storage import CONFIG, Archive, Outgoing, replaced_folder, write_json, write_weights

SHARD_BYTES = 5_000_000_000
_BUNDLED = {"tiny": "zaya1-tiny"}
_DOWNLOADED = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model"]
_DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_EMBEDDING = "model.embed_tokens.weight"


# ---- load ----


def load_model(
    path_or_name: str | Path,
    *,
    dtype: str = "auto",
    device: torch.device | str = "cpu",
    numerics: str = "hf",
    skip_semantics: SkipSemantics | None = None,
    packed: bool = False,
) -> ZayaForCausalLM:
    """The model in a local folder of any kind, of a hub id `org/name`, or `tiny`, the bundled one.

    `dtype` is "auto" (what its config.json says), "float32" or "bfloat16"; balancing biases are float32 in any case.
    `numerics` is "hf" or "report"; `skip_semantics` overrides the folder's. With `packed` the weights of a quantised
    folder stay in 4 or 8 bits: the model needs the memory of its file and is for inference alone, and `dtype` is that
    of everything else. Each tensor is allocated once and copied out of the memory map, so that nothing is held twice.
    Raises ValueError, in one sentence that names the file, for anything amiss.
    """
    profile = numerics_profile(numerics)
    folder = find_model(path_or_name)
    source = open_source(folder)
    config = source.config
    if skip_semantics is not None:
        config = config.with_(skip_semantics=skip_semantics)
    if dtype == "auto":
        dtype = config.dtype
    if dtype not in _DTYPES:
        raise ValueError(f"{folder} cannot run in dtype {dtype!r}; give dtype 'bfloat16' or 'float32'")
    place = usable_device(device)
    if packed:
        return _load_packed(source, config.with_(dtype=dtype), profile, place)
    with Unfilled(_DTYPES[dtype], place):
        model = ZayaForCausalLM(config.with_(dtype=dtype), profile)
    weights = model.state_dict()
    for name in expected_tensors(config):
        filled, target = 0, weights[name].view(-1)
        for piece in source.pieces(name):
            target[filled : filled + piece.numel()].copy_(piece.reshape(-1))
            filled += piece.numel()
        assert filled == target.numel(), name
    return model.eval()


def _load_packed(source: Source, config: ZayaConfig, profile: Numerics, device: torch.device) -> ZayaForCausalLM:
    if not isinstance(source, Container):
        raise ValueError(
            f"{source.folder} is not quantised, so there is nothing packed in it; write a quantised folder with "
            "`openzaya quantize`, or load it without packed"
        )
    require_kernel(device)
    with Unfilled(_DTYPES[config.dtype], torch.device("meta")):
        model = ZayaForCausalLM(config, profile)
    load_packed(model, source, _DTYPES[config.dtype], device)
    return model.eval()


class Unfilled(TorchFunctionMode):
    """While active, modules are built with their memory allocated in one dtype and place, and nothing in it.

    A tensor that asks for a dtype of its own gets that one. (Building on the meta device would do too, but imports
    most of torch's compiler, which takes as long as torch itself.)
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.dtype, self.device = dtype, device

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            kwargs = {**kwargs, "dtype": kwargs.get("dtype") or self.dtype, "device": self.device}
        elif getattr(func, "__module__", None) == torch.nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def find_model(path_or_name: str | Path) -> Path:
    """The folder of a model, after a download where it is a hub id; raises ValueError where there is none."""
    name = str(path_or_name)
    if name in _BUNDLED:
        folder = Path(str(importlib.resources.files("openzaya"))) / "bundled" / _BUNDLED[name]
        if not folder.is_dir():
            raise ValueError(f"the bundled model is missing from this installation ({folder}); install openzaya again")
        return folder
    if (folder := Path(name).expanduser()).is_dir():
        return folder
    if is_hub_id(name):
        return _download(name)
    raise ValueError(f"{name!r} is no model folder; give a folder, a hub id such as Zyphra/ZAYA1-8B, or 'tiny'")


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with told(hub_id):
        try:
            return Path(snapshot_download(hub_id, allow_patterns=_DOWNLOADED))
        except LocalEntryNotFoundError as error:
            require_online(hub_id)
            raise ConnectionError(str(error.__cause__ or error)) from error


def checkpoint_layout(folder: str | Path) -> Layout:
    """The layout of the weights in `folder`, told by their names; raises ValueError where they are no ZAYA's."""
    return archive_layout(Archive(folder))


def iter_tensors(folder: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of `folder` with its name in the file, each a view of the memory map, read when it is used."""
    archive = Archive(folder)
    for name in archive.names:
        yield name, archive.read(name)


def usable_device(device: torch.device | str) -> torch.device:
    """What torch calls `device`; raises ValueError where it has none such here."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {str(device)!r} cannot be used here ({str(error).splitlines()[0]})") from None


# ---- save and convert ----


def save_model(
    model: ZayaForCausalLM,
    folder: str | Path,
    layout: Layout = "native",
    *,
    max_shard_bytes: int = SHARD_BYTES,
    dtype: str | None = None,
) -> None:
    """Write config.json and the weights of `model` to `folder`, whole or not at all.

    `dtype` None keeps the model's own; balancing biases are float32 in any case. Other files already in `folder` stay,
    so that a tokenizer beside the weights survives. Raises ValueError where `folder` holds something else.
    """
    weights = model.state_dict()
    if _EMBEDDING not in weights:
        raise ValueError("the weights of this model are packed; `convert` the folder that it was loaded from instead")
    if weights[_EMBEDDING].is_meta:
        raise ValueError("the model is on the meta device and has no weights to save; initialise or load it first")
    own = weights[_EMBEDDING].dtype
    wanted = _dtype(dtype)

    def outgoing(tensor: StoredTensor) -> Outgoing:
        whole = weights[tensor.native]
        source = whole if tensor.expert is None else whole[tensor.expert]
        kept = torch.float32 if tensor.float32 else wanted or source.dtype
        return Outgoing(tensor.name, tensor.shape, kept, lambda: (source,))

    tensors = [outgoing(tensor) for tensor in expected_tensors(model.config, layout).values()]
    config = model.config.with_(dtype=str(wanted or own).removeprefix("torch."))
    _write(Path(folder), config, layout, tensors, max_shard_bytes)


def convert(
    source: str | Path,
    destination: str | Path,
    layout: Layout = "native",
    dtype: str | None = None,
    max_shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Rewrite the checkpoint folder `source` as `destination`, in room for one tensor at a time.

    `dtype` None keeps what each tensor is stored in. Tokenizer, template and generation settings are copied along.
    `progress` gets bytes done and bytes in all. Raises ValueError as `load_model` does, before anything is written.
    """
    weights = open_source(source)
    config = weights.config
    wanted = _dtype(dtype)

    def outgoing(tensor: StoredTensor) -> Outgoing:
        kept = torch.float32 if tensor.float32 else wanted or weights.dtype(tensor.native)
        return Outgoing(tensor.name, tensor.shape, kept, lambda: weights.pieces(tensor.native, tensor.expert))

    if wanted is not None:
        config = config.with_(dtype=str(wanted).removeprefix("torch."))
    tensors = [outgoing(tensor) for tensor in expected_tensors(config, layout).values()]
    _write(Path(destination), config, layout, tensors, max_shard_bytes, progress, companions(source))


def _write(
    folder: Path,
    config: ZayaConfig,
    layout: Layout,
    tensors: Iterable[Outgoing],
    max_shard_bytes: int,
    progress: Callable[[int, int], None] | None = None,
    copied: Iterable[Path] = (),
) -> None:
    with replaced_folder(folder) as partial:
        write_json(partial / CONFIG, config.to_dict() if layout == "native" else config.to_legacy_dict())
        for path in copied:
            shutil.copyfile(path, partial / path.name)
        write_weights(partial, tensors, max_shard_bytes, progress)


def _dtype(name: str | None) -> torch.dtype | None:
    if name is not None and name not in _DTYPES:
        raise ValueError(f"dtype is {name!r}; weights are written as 'bfloat16' or 'float32'")
    return None if name is None else _DTYPES[name]
