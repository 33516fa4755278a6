"""The header of a container: what it is, how its matrices are kept, which architecture they belong to, and hashes.

It is JSON under the key `openzaya` of the safetensors metadata, and checked before a single tensor is looked at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openzaya.model.config import ZayaConfig
from openzaya.model.quantised.scheme import SCHEMES, Scheme

KEY = "openzaya"
FORMAT = "openzaya-quantised"
VERSION = 1
METHOD = "openzaya"
"""The `quant_method` of config.json, by which other loaders see that these are no plain weights."""
HASH_BYTES = 16
"""Of BLAKE2b; against damage, not against malice."""

_ARCHITECTURE = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "num_experts", "moe_intermediate_size", "router_hidden_size", "cca_time0", "cca_time1", "tie_word_embeddings",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Header:
    """The header of version 1; `architecture` has the sizes of the model, `hashes` one of each tensor, in hex."""

    scheme: Scheme
    architecture: Mapping[str, Any]
    hashes: Mapping[str, str]

    def to_metadata(self) -> dict[str, str]:
        """As safetensors metadata."""
        fields: dict[str, Any] = {"format": FORMAT, "version": VERSION, "scheme": self.scheme.name}
        if self.scheme.group is not None:
            fields["group"] = self.scheme.group
        fields |= {"hash": f"blake2b-{8 * HASH_BYTES}", "architecture": self.architecture, "hashes": self.hashes}
        return {"format": "pt", KEY: json.dumps(fields, separators=(",", ":"))}

    def check_architecture(self, config: ZayaConfig) -> None:
        """Raises ValueError where config.json describes another model than the one that was quantised."""
        for name, value in architecture(config).items():
            if self.architecture.get(name) != value:
                raise ValueError(
                    f"config.json says {name} {value}, but the weights were quantised with "
                    f"{self.architecture.get(name)!r}; put back the config.json that was written with them"
                )


def architecture(config: ZayaConfig) -> dict[str, Any]:
    """The sizes that decide which tensors there are."""
    return {name: getattr(config, name) for name in _ARCHITECTURE}


def is_container(metadata: Mapping[str, str]) -> bool:
    """Whether a file with this safetensors metadata says that it is a container of quantised weights."""
    return KEY in metadata


def read_header(metadata: Mapping[str, str]) -> Header:
    """Raises ValueError, in one sentence, for a header that is damaged, of a newer version or of another kind."""
    try:
        fields = json.loads(metadata[KEY])
    except (ValueError, RecursionError):
        raise ValueError("its header is not JSON; the file is damaged, quantise the model again") from None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise ValueError(f"its header does not say {FORMAT}; it is no container of openzaya or damaged")
    version = fields.get("version")
    if type(version) is not int or version < 1:
        raise ValueError(f"its header has the version {version!r}; the file is damaged, quantise the model again")
    if version > VERSION:
        raise ValueError(f"it has version {version} and this openzaya reads {VERSION}; install a newer one")
    kept = fields.get("scheme"), fields.get("group")
    scheme = next((known for known in SCHEMES if (known.name, known.group) == kept), None)
    if scheme is None:
        raise ValueError(f"its header has the scheme {kept[0]!r} with the group {kept[1]!r}; quantise the model again")
    shape, hashes = fields.get("architecture"), fields.get("hashes")
    if not isinstance(shape, dict) or not isinstance(hashes, dict):
        raise ValueError("its header lacks the architecture or the hashes; the file is damaged, quantise it again")
    return Header(scheme, shape, hashes)
