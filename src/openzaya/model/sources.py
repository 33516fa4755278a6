"""The weights of a checkpoint folder by their native names, whatever its files hold: plain, or quantised.

Everything that reads a checkpoint (loading, converting, quantising) reads it through `open_source`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from openzaya.model.compressed import CompressedArchive
from openzaya.model.config import ZayaConfig, read_fields
from openzaya.model.names import Layout, StoredTensor, expected_tensors, layout_of
from openzaya.model.quantised.container import Container
from openzaya.model.quantised.header import METHOD, is_container
from openzaya.model.storage import CONFIG, Archive

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.jinja",
    "generation_config.json",
)


class Source(Protocol):
    """The weights of one ZAYA."""

    folder: Path
    config: ZayaConfig

    def dtype(self, native: str) -> torch.dtype:
        """What a tensor is kept in where nobody asks for anything else."""
        ...

    def pieces(self, native: str, expert: int | None = None) -> Iterable[Tensor]:
        """A tensor of the model, or one expert's slice of a stack, in row-major pieces, each read when it is due."""
        ...

    def release(self) -> None:
        """Give back the memory of what was read, as far as no piece is held any more."""
        ...


def open_source(folder: str | Path) -> Source:
    """The weights in `folder`, checked against its config.json; those of a container against their hashes as well.

    Raises ValueError, in one sentence that names the file, for anything amiss.
    """
    archive = Archive(folder)
    if is_container(archive.metadata):
        container = Container(folder)
        container.verify()
        return container
    return open_plain(folder)


def open_plain(folder: str | Path, awaited: Mapping[str, Any] = MappingProxyType({})) -> PlainSource:
    """The floating-point weights in `folder`; `awaited` is that of `Archive`. Raises ValueError as `open_source`."""
    archive = Archive(folder, awaited)
    method = read_fields(archive.folder).get("quantization_config")
    if isinstance(method, dict) and method.get("quant_method") == "compressed-tensors":
        return PlainSource(CompressedArchive(folder, method, awaited))
    if method:
        raise ValueError(_unknown_method(archive.folder, method))
    return PlainSource(archive)


def companions(folder: str | Path) -> list[Path]:
    """The files beside the weights that a rewritten checkpoint needs too: tokenizer, template, generation settings."""
    found = (path for pattern in TOKENIZER_FILES for path in sorted(Path(folder).glob(pattern)))
    return [path for path in found if path.is_file()]


class PlainSource:
    """A checkpoint of floating-point tensors in either layout."""

    def __init__(self, archive: Archive) -> None:
        self.folder = archive.folder
        self.config, layout = _described(archive)
        self._archive = archive
        self._holders: dict[str, list[StoredTensor]] = {}  # of each tensor of the model: one, or an expert each
        for tensor in _checked(archive, self.config, layout):
            self._holders.setdefault(tensor.native, []).append(tensor)
        self.head_files = _files_of_tied_head(archive, self.config)
        """Of a head beside tied embeddings, which `check_head` compares; empty for other models."""
        if self.head_files <= self.here:
            self.check_head()

    @property
    def here(self) -> frozenset[Path]:
        """The files that can be read, as of the last `release`."""
        return self._archive.here

    def files(self, native: str) -> frozenset[Path]:
        """The files that a tensor of the model is read from."""
        return frozenset().union(*(self._archive.files(tensor.name) for tensor in self._holders[native]))

    def check_head(self) -> None:
        """Raises ValueError where a head beside tied embeddings differs from them; both must be readable."""
        if self.head_files:
            _check_tied_head(self._archive)

    def dtype(self, native: str) -> torch.dtype:
        return self._archive.dtype(self._holders[native][0].name)

    def pieces(self, native: str, expert: int | None = None) -> Iterable[Tensor]:
        held = self._holders[native]
        if held[0].expert is not None:
            return (self._archive.read(part.name) for part in (held if expert is None else (held[expert],)))
        if held[0].part == "experts":
            experts = range(self.config.num_experts) if expert is None else (expert,)
            return (self._archive.read_slice(native, each) for each in experts)
        return (self._archive.read(held[0].name),)

    def release(self) -> None:
        self._archive.release()


def _unknown_method(folder: Path, method: Any) -> str:
    if isinstance(method, dict) and method.get("quant_method") == METHOD:
        return f"{folder} says in config.json that it is quantised, but its weights have no header; quantise it again"
    return (
        f"{folder} is quantised (its config.json has quantization_config) in a way that openzaya does not read; "
        "give it the plain checkpoint, which it quantises itself"
    )


def archive_layout(archive: Archive) -> Layout:
    """The layout of the tensors in `archive`; raises ValueError where they are no ZAYA's."""
    layout = layout_of(archive.names)
    if layout is None:
        example = min(archive.names, default="nothing")
        raise ValueError(f"{archive.folder} holds no ZAYA weights, but {example}; give the folder of a ZAYA model")
    return layout


def _described(archive: Archive) -> tuple[ZayaConfig, Layout]:
    """Configuration and layout, with what the weights know better: the head counts, and a dtype that is not given.

    Released legacy files of one shape say 8 or 16 heads, depending on the branch that wrote them.
    """
    fields = read_fields(archive.folder)
    layout = archive_layout(archive)
    try:
        config = ZayaConfig.from_dict(fields)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{archive.folder / CONFIG} cannot be read ({type(error).__name__}: {error})") from None
    if not (fields.get("dtype") or fields.get("torch_dtype")) and _EMBEDDING in archive.names:
        config = config.with_(dtype=str(archive.dtype(_EMBEDDING)).removeprefix("torch."))
    by_native = {tensor.native: tensor.name for tensor in expected_tensors(config, layout).values()}
    attention = "model.layers.0.self_attn.qkv_proj."
    names = [by_native[attention + part] for part in ("q_proj.weight", "k_proj.weight", "conv_qk_depthwise.bias")]
    if not set(names) <= set(archive.names):
        return config, layout
    (query, *_), (key, *_), (channels, *_) = (archive.shape(name) or (0,) for name in names)
    heads, key_heads = query // config.head_dim, key // config.head_dim
    consistent = query + key == channels and query % config.head_dim == key % config.head_dim == 0
    if consistent and key_heads and heads and heads % key_heads == 0:
        config = config.with_(num_attention_heads=heads, num_key_value_heads=key_heads)
    return config, layout


def _checked(archive: Archive, config: ZayaConfig, layout: Layout) -> list[StoredTensor]:
    """The tensors of `archive` in the table's order, once they are exactly the ones that `config` asks for."""
    expected = expected_tensors(config, layout)
    present = set(archive.names)
    if config.tie_word_embeddings:
        present.discard(_HEAD)
    if missing := [name for name in expected if name not in present]:
        raise ValueError(f"{archive.folder} lacks {_first(missing)}, which its config.json asks for")
    if unknown := sorted(present - expected.keys()):
        raise ValueError(f"{archive.file(unknown[0])} holds {_first(unknown)}, which no ZAYA of its config.json has")
    for name, tensor in expected.items():
        archive.dtype(name)
        if (shape := archive.shape(name)) != tensor.shape:
            raise ValueError(
                f"{archive.file(name)}: {name} has the shape {list(shape)}, "
                f"but config.json asks for {list(tensor.shape)}"
            )
    return list(expected.values())


def _files_of_tied_head(archive: Archive, config: ZayaConfig) -> frozenset[Path]:
    if not config.tie_word_embeddings or not {_HEAD, _EMBEDDING} <= set(archive.names):
        return frozenset()
    return archive.files(_HEAD) | archive.files(_EMBEDDING)


def _check_tied_head(archive: Archive) -> None:
    """A head beside tied embeddings is ignored where it equals them.

    Where it differs, transformers warns and uses both; we refuse, since the config then says the wrong thing.
    """
    if not torch.equal(archive.read(_HEAD), archive.read(_EMBEDDING)):
        raise ValueError(
            f"{archive.file(_HEAD)}: {_HEAD} differs from {_EMBEDDING} although config.json ties them; set "
            "tie_word_embeddings to false there if the head is meant"
        )


def _first(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more tensors"
