"""A cluster as a TOML file describes it; unknown keys are refused. Bytes and FLOPs are plain numbers: 192e9, 732e12."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Above0 = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Gpu(_Section):
    """One accelerator."""

    name: str
    memory: Above0
    """Bytes."""
    matmul: Above0
    """FLOPs a second that a large bfloat16 product reaches; a data sheet says more."""
    memory_bandwidth: Above0
    """Bytes a second that a copy reaches, reads and writes together."""


class Node(_Section):
    """What is in one machine."""

    gpus: Count
    link: Above0
    """Bytes a second that a GPU sends to the others of its node, over all its links at once."""
    topology: Literal["switch", "mesh"]
    """A switch gives a GPU all of that towards any other; in a mesh each pair has a link of its own."""
    network: Above0 | None = None
    """Bytes a second that a GPU sends to other nodes; None for a machine on its own."""


class Storage(_Section):
    """Where data and states lie, as all nodes together see it."""

    read: Above0
    """Bytes a second."""
    write: Above0
    """Bytes a second."""
    operations: Above0
    """Random reads of a page a second."""


class Assumed(_Section):
    """What nothing in a description says. A plan repeats these, so that nobody takes them for measurements."""

    utilisation: Share = 0.2
    """Of `gpu.matmul` in forward and backward, everything that is no product included, waiting for others not. A
    published training of a mixture of experts reached 16.6 % of the data sheet (Qwen3-30B-A3B, 8 H200, prime-rl)."""
    newton_schulz: Share = 0.5
    """Of `gpu.matmul` in the products of Muon."""
    collectives: Share = 0.8
    """Of the links' speed in large collectives."""
    link_latency: Above0 = 3e-6
    """Seconds of one hop within a node."""
    network_latency: Above0 = 10e-6
    """Seconds of one hop between nodes."""
    host_copy: Above0 = 25e9
    """Bytes a second from a GPU to its host: half of PCIe 5."""
    memory_reserve: Share = 0.1
    """Of a GPU's memory, for buffers of collectives, fragments, and what nobody counted."""
    gpu_hours_a_failure: Above0 = 50_000.0
    """Llama 3's report: 419 interruptions in 54 days on 16,384 GPUs."""
    restart: Above0 = 600.0
    """Seconds from a failure to the next step."""
    scatter: Annotated[float, Field(ge=1)] = 2.0
    """Page faults a useful page (report, appendix B: 1 to 2 is usual, up to 8 where samples lie in fragments)."""


class Cluster(_Section):
    """Equal nodes of equal GPUs."""

    name: str
    nodes: Count
    gpu: Gpu
    node: Node
    storage: Storage
    assumed: Assumed = Assumed()

    @property
    def gpus(self) -> int:
        return self.nodes * self.node.gpus


def read_cluster(path: str | Path) -> Cluster:
    """Read a description; raises ValueError naming the file, the key and what is wrong with it."""
    try:
        cluster = Cluster(**tomllib.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML ({error})") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path}: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None
    if cluster.nodes > 1 and cluster.node.network is None:
        raise ValueError(f"{path}: node.network is not given, and there are {cluster.nodes} nodes")
    return cluster
