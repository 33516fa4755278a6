"""A GGUF file of random Q4_0 weights with the shapes of a ZAYA, as llama.cpp's closest architecture takes them.

    python benchmarks/peers/random_gguf.py FILE.gguf [--shape zaya1-8b] [--layers N] [--seed 0]

The architecture is `qwen3moe` with one expert a token: attention with grouped heads and normed queries and keys, a
linear router, and experts of the same width. It lacks ZAYA's convolutions over time, its router's hidden layers and the
scales of its residuals, so it does a little less than a ZAYA. Every matrix is Q4_0, the head is the embedding, and
norms and routers are float32. Four-bit codes are drawn as they lie in the file; one tensor is in memory at a time.
Needs the package `gguf`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from openzaya.model.config import NAMED_SHAPES, ZayaConfig

ARCHITECTURE = "qwen3moe"
GROUP = 32
"""Weights that share a scale in Q4_0."""
BLOCK_BYTES = 2 + GROUP // 2
"""A float16 scale and the codes of a group."""
CODE_DEVIATION = 17.5**0.5
"""Standard deviation of codes that are drawn from -7..7, with 0 twice as often as the others."""
EMBEDDING = "token_embd.weight"
EMBEDDING_DEVIATION = 1.0
"""So large that tokens stay different. With that of the other matrices, what attention adds would outweigh them, and
that is nearly the same for all rows after one prompt: they would share their experts and read few of them."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the file: its shape with the contiguous axis last, and whether it is Q4_0 or float32."""

    name: str
    shape: tuple[int, ...]
    packed: bool = True

    @property
    def bytes(self) -> int:
        return prod(self.shape) // GROUP * BLOCK_BYTES if self.packed else 4 * prod(self.shape)


def main() -> None:
    arguments = read_arguments()
    config = NAMED_SHAPES[arguments.shape]
    if arguments.layers is not None:
        config = config.with_(num_hidden_layers=arguments.layers)
    try:
        write_file(arguments.file, config, arguments.seed)
    except ValueError as error:
        sys.exit(str(error))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--shape", default="zaya1-8b", choices=sorted(NAMED_SHAPES))
    parser.add_argument("--layers", type=int, help="fewer than the shape has, for a trial")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def tensors(config: ZayaConfig) -> list[Tensor]:
    """All tensors by llama.cpp's names, in the file's order; raises ValueError where Q4_0 cannot hold the shape."""
    width, experts, inner = config.hidden_size, config.num_experts, config.moe_intermediate_size
    for name, size in (("hidden_size", width), ("moe_intermediate_size", inner), ("queries", config.query_size)):
        if size % GROUP:
            raise ValueError(f"{name} is {size}; Q4_0 needs a multiple of {GROUP}, take another shape")
    found = [Tensor(EMBEDDING, (config.vocab_size, width)), Tensor("output_norm.weight", (width,), False)]
    for layer in range(config.num_hidden_layers):
        found += [
            Tensor(f"blk.{layer}.{name}.weight", shape, packed)
            for name, shape, packed in (
                ("attn_norm", (width,), False),
                ("attn_q", (config.query_size, width), True),
                ("attn_k", (config.key_value_size, width), True),
                ("attn_v", (config.key_value_size, width), True),
                ("attn_output", (width, config.query_size), True),
                ("attn_q_norm", (config.head_dim,), False),
                ("attn_k_norm", (config.head_dim,), False),
                ("ffn_norm", (width,), False),
                ("ffn_gate_inp", (experts, width), False),
                ("ffn_gate_exps", (experts, inner, width), True),
                ("ffn_up_exps", (experts, inner, width), True),
                ("ffn_down_exps", (experts, width, inner), True),
            )
        ]
    return found


def metadata(config: ZayaConfig) -> dict[str, int | float]:
    """What the loader asks of this architecture, by key without the architecture's name; floats are float32."""
    return {
        "vocab_size": config.vocab_size,
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.moe_intermediate_size,
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_count": config.num_experts,
        "expert_used_count": 1,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_parameters["hybrid"].rope_theta,
    }


def write_file(file: Path, config: ZayaConfig, seed: int = 0) -> None:
    """Write the whole file, or none; raises ValueError where Q4_0 cannot hold the shape."""
    import gguf

    listed = tensors(config)
    partial = file.with_name(f".{file.name}.partial")
    writer = gguf.GGUFWriter(partial, ARCHITECTURE)
    writer.add_name("random weights in the shape of a ZAYA")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    # With this tokenizer llama.cpp makes `vocab_size` tokens without text, all that its measuring programs need.
    writer.add_tokenizer_model("none")
    for key, value in metadata(config).items():
        add = writer.add_uint32 if isinstance(value, int) else writer.add_float32
        add(f"{ARCHITECTURE}.{key}", value)
    kinds = {True: gguf.GGMLQuantizationType.Q4_0, False: gguf.GGMLQuantizationType.F32}
    for tensor in listed:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.bytes, kinds[tensor.packed])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    source = np.random.Generator(np.random.SFC64(seed))
    for tensor in reported(listed):
        deviation = EMBEDDING_DEVIATION if tensor.name == EMBEDDING else config.initializer_range
        writer.write_tensor_data(drawn(tensor, deviation, source))
    writer.close()
    partial.replace(file)


def drawn(tensor: Tensor, deviation: float, source: np.random.Generator) -> np.ndarray:
    """Numbers of mean 0 and standard deviation `deviation`, as the file holds them; norms are ones."""
    if len(tensor.shape) == 1:
        return np.ones(tensor.shape, dtype=np.float32)
    if not tensor.packed:
        return deviation * source.standard_normal(tensor.shape, dtype=np.float32)
    blocks = np.empty((prod(tensor.shape) // GROUP, BLOCK_BYTES), dtype=np.uint8)
    blocks[:, :2] = np.array([deviation / CODE_DEVIATION], dtype=np.float16).view(np.uint8)
    rows = 1 << 20
    for start in range(0, len(blocks), rows):
        codes = blocks[start : start + rows, 2:]
        codes[:] = _WITHOUT_LOWEST[np.frombuffer(source.bytes(codes.size), dtype=np.uint8)].reshape(codes.shape)
    return blocks


def _without_lowest() -> np.ndarray:
    """For every byte of two codes the byte in which code 0 (which stands for -8) has become 8 (for 0)."""
    codes = np.arange(256, dtype=np.uint8)
    low, high = codes & 15, codes >> 4
    return np.where(low == 0, 8, low) | np.where(high == 0, 8, high) << 4


# Sixteen codes have no middle: their mean of -0.5 would be a component that all tokens share, and pull them to the same
# experts.
_WITHOUT_LOWEST = _without_lowest().astype(np.uint8)


def reported(listed: list[Tensor]) -> Iterator[Tensor]:
    """The tensors, with the share that is written and the time left on standard error every few seconds."""
    total, done, began, last = sum(tensor.bytes for tensor in listed), 0, time.monotonic(), time.monotonic()
    for tensor in listed:
        yield tensor
        done += tensor.bytes
        now = time.monotonic()
        if now - last > 2:
            last = now
            left = (now - began) / done * (total - done)
            print(f"{done / 1e9:.1f} of {total / 1e9:.1f} GB, {left:.0f} s left", file=sys.stderr)


if __name__ == "__main__":
    main()
