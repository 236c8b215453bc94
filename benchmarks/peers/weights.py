"""Random weights of a published variant's shapes: for our engines as arrays, for others as a Hugging Face folder.

All runtimes get the same values, as far as their formats go: one block of noise, repeated over every matrix from a
place of its own and scaled by its inputs. Speed does not depend on them, but no two matrices may be equal: OpenVINO
stores equal ones once, and a model of equal layers would fit into the processor's caches.
"""

from __future__ import annotations

import json
import math
import shutil
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from nvila_ros.models.quantized import Int4Weight, Int8Weight, Weight
from nvila_ros.models.shapes import expected_shapes
from nvila_ros.models.spec import DecoderSpec, ModelSpec
from nvila_ros.models.variants import GROUP_SIZE
from nvila_ros.paths import share_path

EMBEDDING, HEAD = "llm.model.embed_tokens.weight", "llm.lm_head.weight"
SHARD_BYTES = 1 << 30
NUM_NOISE = 1 << 24
ALIGNMENT = 256  # values: of the blocks of all formats the longest
NOISE_STD = 74.0  # of int8 noise that is uniform
INPUT_SCALE = 4 / 127  # of activations that a norm has left with a spread of one


def noise() -> np.ndarray:
    """Return the block that every matrix repeats, int8."""
    return np.random.default_rng(0).integers(-127, 128, NUM_NOISE, dtype=np.int8)


def start_of(key: str) -> int:
    """Return where in the noise a tensor begins, a whole number of any format's blocks."""
    return zlib.crc32(key.encode()) % (NUM_NOISE // ALIGNMENT) * ALIGNMENT


class RandomWeights(Mapping[str, Weight]):
    """A model's weights, made when they are asked for.

    Args:
        spec: the shapes.
        head_bits: of the map to the vocabulary, 4 or 8.
        is_float: quantize nothing; else the decoder is W4A16 and the tower W8A8, as `nvila build` makes them.
        input_scale: of the tower's activations; None rounds them by token.
    """

    def __init__(
        self,
        spec: ModelSpec,
        head_bits: int = 4,
        *,
        is_float: bool = False,
        input_scale: float | None = INPUT_SCALE,
    ) -> None:
        self._shapes = expected_shapes(spec)
        self._head_bits, self._is_float, self._input_scale = head_bits, is_float, input_scale
        if not is_float:
            self._shapes[HEAD] = self._shapes[EMBEDDING]
        self._noise = noise()

    def __getitem__(self, key: str) -> Weight:
        shape = self._shapes[key]
        if self._is_float or not self._is_quantized(key):
            return self._float(key, shape)
        num_out, num_in = shape
        scale = np.float32(num_in**-0.5)
        is_tower = key.startswith("vision_tower.")
        if is_tower or (key == HEAD and self._head_bits == 8):
            values, scales = self._values(key, num_in, num_out), np.full(num_out, scale / NOISE_STD, np.float32)
            return Int8Weight(values, scales, self._input_scale if is_tower else None)
        scales = np.full((num_in // GROUP_SIZE, num_out), np.float16(16 * scale / NOISE_STD), np.float32)
        return Int4Weight(self._values(key, num_in, num_out) >> 4, scales)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def bytes_per_step(self, spec: DecoderSpec, context: int) -> float:
        """Return what a decode step must read: matrices with their scales, and the cache in two bytes a value."""
        total = 2 * spec.num_layers * spec.num_kv_heads * spec.head_size * context * 2.0
        for key, shape in self._shapes.items():
            if key.startswith("llm.") and self._is_quantized(key):
                bits = self._head_bits if key == HEAD else 4
                num_scales = shape[0] if bits == 8 else math.prod(shape) // GROUP_SIZE
                total += math.prod(shape) * bits / 8 + (4 if bits == 8 else 2) * num_scales
        return total

    def _is_quantized(self, key: str) -> bool:
        is_matrix = len(self._shapes[key]) == 2 and ".layers." in key and not key.startswith("mm_projector.")
        return is_matrix or key == HEAD

    def _values(self, key: str, *shape: int) -> np.ndarray:
        return np.resize(np.roll(self._noise, -start_of(key)), shape)

    def _float(self, key: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        return self._values(key, *shape) * np.float32(math.prod(shape[1:]) ** -0.5 / NOISE_STD)


@dataclass(frozen=True, slots=True)
class FloatModel:
    """What an engine reads of a checkpoint, with random weights in float32."""

    spec: ModelSpec

    def weights(self) -> RandomWeights:
        """Return the weights."""
        return RandomWeights(self.spec, is_float=True)


def write_hf_folder(spec: ModelSpec, folder: Path) -> None:
    """Write the language model as Hugging Face keeps a Qwen2 in bf16, with nvila-tiny's tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (share_path("checkpoints") / "nvila-tiny" / "llm").glob("*.*"):
        if path.suffix in (".json", ".txt") and path.name != "config.json":
            shutil.copy(path, folder)
    weights = RandomWeights(spec, is_float=True)
    shards: list[list[str]] = [[]]
    held = 0
    for key in (key for key in weights if key.startswith("llm.")):
        num_bytes = 2 * math.prod(expected_shapes(spec)[key])
        if held and held + num_bytes > SHARD_BYTES:
            shards.append([])
            held = 0
        shards[-1].append(key)
        held += num_bytes
    index = {}
    for i, keys in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        save_file(
            {key.removeprefix("llm."): weights[key].astype(ml_dtypes.bfloat16) for key in keys},  # type: ignore[union-attr]
            folder / file,
            metadata={"format": "pt"},
        )
        index |= {key.removeprefix("llm."): file for key in keys}
    _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})
    _write_json(folder / "config.json", _qwen2_config(spec.decoder))


def _qwen2_config(spec: DecoderSpec) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": spec.width,
        "intermediate_size": spec.mlp_width,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope_theta,
        "max_position_embeddings": spec.max_positions,
        "vocab_size": spec.vocab_size,
        "tie_word_embeddings": spec.is_tied,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "use_sliding_window": False,
    }


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")
