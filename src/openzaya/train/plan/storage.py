"""What training asks of storage: pages of the data set while it reads, states of the run while it saves."""

from __future__ import annotations

import math
from dataclasses import dataclass

from openzaya.train.plan.cluster import Cluster

PAGE = 4096
TOKEN_BYTES = 4
"""Of the token ids on disk."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Reading a memory-mapped data set in random order (report, appendix B)."""

    bytes_a_step: int
    pages_a_step: int
    operations: float
    """Page faults a second, where a step takes as long as it does."""
    shortest_step: float
    """Seconds below which storage cannot keep up, and training waits for it."""


def reading(
    *, batch_tokens: int, step_seconds: float, operations_limit: float, scatter: float, token_bytes: int = TOKEN_BYTES
) -> Reading:
    """The report's model: a step of G s tokens of b bytes is G s b / P pages, each of them `scatter` faults."""
    size = batch_tokens * token_bytes
    pages = -(-size // PAGE)
    return Reading(size, pages, pages * scatter / step_seconds, pages * scatter / operations_limit)


@dataclass(frozen=True, slots=True)
class Saving:
    """States of the run, written beside training."""

    state_bytes: float
    blocked_seconds: float
    """Until the state is copied from the GPUs, and training goes on."""
    write_seconds: float
    seconds_between_failures: float
    interval_seconds: float
    """Between two states, where saving and repeating lost work together cost least (Young 1974), as if training waited
    while a state is written."""
    lost_share: float
    """Of all time: blocked by states, lost work and restarts."""


def saving(cluster: Cluster, state_bytes: float) -> Saving:
    """Plan the states of a run of `state_bytes` that every GPU holds an equal part of."""
    assumed = cluster.assumed
    blocked = state_bytes / cluster.gpus / assumed.host_copy
    write = state_bytes / cluster.storage.write
    failures = assumed.gpu_hours_a_failure * 3600 / cluster.gpus
    interval = math.sqrt(2 * write * failures)
    lost = blocked / interval + (interval / 2 + assumed.restart) / failures
    return Saving(state_bytes, blocked, write, failures, interval, min(lost, 1.0))
