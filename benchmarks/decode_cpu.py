"""How fast the CPU engine prefills and decodes, against the memory's speed and llama.cpp's.

Random weights of a published variant's language model: four-bit layers with a scale for each 128 inputs, and a head in
four or eight bits. In the same run, one after another: how fast all cores read memory; the engine; ONNX Runtime in
float32 over a few layers and a small vocabulary, with the engine over the same shapes beside it; and llama.cpp on a
Q4_0 file of the same shapes, where llama-cpp-python and gguf are installed. Two that are compared take turns, since
other work on the machine comes and goes. Prints a table and, last, one JSON line;
`roofline` is the share of the measured read speed at which a decode step reads weights and cache.

    .venv/bin/python -m benchmarks.decode_cpu --layers 28
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from nvila_ros.models.quantized import Int4Weight, Int8Weight, Weight
from nvila_ros.models.shapes import expected_shapes
from nvila_ros.models.spec import ModelSpec, ProjectorSpec, VisionSpec
from nvila_ros.models.variants import GROUP_SIZE, VARIANTS
from nvila_ros.runtime.contract import Engine
from nvila_ros.runtime.cpu_engine import HEAD, load_quantized
from nvila_ros.runtime.onnxruntime_engine import EMBEDDING, OnnxRuntimeEngine
from nvila_ros.tools.options import positive, print_json

GB = 1e9
ROUNDS = 3
FLOAT_VOCAB = 1024  # of the comparison in float32, whose full head would outweigh its few layers
BLOCK, BLOCK_BYTES = 32, 18  # Q4_0: 32 values of four bits and their fp16 scale


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second."""

    prefill: float
    decode: float


@dataclass(frozen=True, slots=True)
class Runner:
    """A loaded model: what empties its cache, what appends tokens, and what must live as long."""

    reset: Callable[[], object]
    run: Callable[[int], object]
    kept: object = None


class RandomWeights(Mapping[str, Weight]):
    """Weights of a decoder that are made when they are asked for; `is_float` makes none of them quantized."""

    def __init__(self, spec: ModelSpec, head_bits: int, *, is_float: bool = False) -> None:
        self._shapes = expected_shapes(spec)
        self._head_bits, self._is_float = head_bits, is_float
        if not is_float:
            self._shapes[HEAD] = self._shapes[EMBEDDING]
        self._noise = np.random.default_rng(0).integers(0, 256, 1 << 24, dtype=np.uint8).view(np.int8)

    def __getitem__(self, key: str) -> Weight:
        shape = self._shapes[key]
        if self._is_float or key not in self.quantized:
            return self._float(shape)
        num_out, num_in = shape
        scale = np.float32(num_in**-0.5)
        if key == HEAD and self._head_bits == 8:
            return Int8Weight(self._values(num_in, num_out), np.full(num_out, scale / 74), None)
        scales = np.full((num_in // GROUP_SIZE, num_out), scale / 4.6, np.float32)
        return Int4Weight(self._values(num_in, num_out) >> 4, scales)

    @property
    def quantized(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what a decode step multiplies by."""
        layers = {key for key in self._shapes if key.startswith("llm.") and key.endswith("proj.weight")}
        return {key: shape for key, shape in self._shapes.items() if key in layers or key == HEAD}

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def _values(self, *shape: int) -> np.ndarray:
        return np.resize(self._noise, shape)

    def _float(self, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        return self._values(*shape) * np.float32(shape[-1] ** -0.5 / 74)


@dataclass(frozen=True, slots=True)
class FloatModel:
    """What the ONNX Runtime engine reads of a checkpoint."""

    spec: ModelSpec

    def weights(self) -> RandomWeights:
        """Return the weights in float."""
        return RandomWeights(self.spec, 0, is_float=True)


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", choices=VARIANTS, default="NVILA-Lite-2B")
    parser.add_argument("--layers", type=positive, default=0, help="of the language model (default: all)")
    parser.add_argument("--float-layers", type=positive, default=4, help="of the comparison in float32")
    parser.add_argument("--head-bits", type=int, choices=(4, 8), default=4)
    parser.add_argument("--prompt", type=positive, default=512, help="tokens of the prefill")
    parser.add_argument("--tokens", type=positive, default=48, help="decode steps")
    parser.add_argument("--threads", type=positive, default=os.cpu_count() or 1)
    args = parser.parse_args()
    spec = decoder_only(VARIANTS[args.variant].spec, args.layers)
    small = decoder_only(spec, min(args.float_layers, spec.decoder.num_layers), FLOAT_VOCAB)

    read_s = read_bandwidth(args.threads)
    runners = {"ours": engine_runner(load_quantized(spec, RandomWeights(spec, args.head_bits), args.threads), args)}
    if (missing := llama_missing()) is None:
        runners["llama"] = llama_runner(spec, args)
    speeds = measure(runners, args)
    ours, llama = speeds["ours"], speeds.get("llama")
    read_s = max(read_s, read_bandwidth(args.threads))
    del runners
    ort = OnnxRuntimeEngine(FloatModel(small), args.threads)  # type: ignore[arg-type]
    few_ours = load_quantized(small, RandomWeights(small, args.head_bits), args.threads)
    speeds = measure({"ours": engine_runner(few_ours, args), "ort": engine_runner(ort, args)}, args)
    ours_small, ort_small = speeds["ours"], speeds["ort"]

    step_bytes = bytes_per_step(spec, args.head_bits, args.prompt + args.tokens // 2)
    roofline = step_bytes * ours.decode / read_s
    layers, few = spec.decoder.num_layers, small.decoder.num_layers
    table = Table(
        "runtime", "layers", "weights", "prefill tok/s", "decode tok/s", title=f"{args.variant}, {args.threads} threads"
    )
    add_row(table, "ours", layers, f"int4, head int{args.head_bits}", ours)
    add_row(table, "llama.cpp", layers, "Q4_0", llama, missing)
    add_row(table, "ours", few, f"int4, vocabulary {FLOAT_VOCAB}", ours_small)
    add_row(table, "onnxruntime", few, f"fp32, vocabulary {FLOAT_VOCAB}", ort_small)
    Console().print(table)
    Console().print(f"read {read_s / GB:.1f} GB/s; {step_bytes / GB:.3f} GB a step; {roofline:.0%} of the read speed")
    print_json(
        {
            "variant": args.variant,
            "layers": layers,
            "decode_tok_s": round(ours.decode, 2),
            "prefill_tok_s": round(ours.prefill, 1),
            "decode_vs_llamacpp": llama and round(ours.decode / llama.decode, 2),
            "prefill_vs_llamacpp": llama and round(ours.prefill / llama.prefill, 2),
            "decode_vs_onnxruntime_fp32": round(ours_small.decode / ort_small.decode, 2),
            "prefill_vs_onnxruntime_fp32": round(ours_small.prefill / ort_small.prefill, 2),
            "roofline": round(roofline, 3),
            "read_gb_s": round(read_s / GB, 1),
        }
    )
    return 0


def add_row(
    table: Table, name: str, layers: int, weights: str, speed: Speed | None, missing: str | None = None
) -> None:
    """Add what one runtime did, or why it did nothing."""
    told = (f"{speed.prefill:.1f}", f"{speed.decode:.2f}") if speed else (f"skipped: {missing}", "")
    table.add_row(name, str(layers), weights, *told)


def decoder_only(spec: ModelSpec, num_layers: int, vocab_size: int = 0) -> ModelSpec:
    """Return the model with a tower that costs nothing; 0 leaves a number as it is."""
    decoder = spec.decoder
    decoder = replace(decoder, num_layers=num_layers or decoder.num_layers, vocab_size=vocab_size or decoder.vocab_size)
    vision = VisionSpec(width=8, num_layers=2, num_heads=1, mlp_width=8, image_px=28, patch_px=14, num_live_layers=1)
    projector = ProjectorSpec(kind="mlp_downsample", in_width=8, out_width=decoder.width)
    modes: dict[str, Any] = {"image_mode": "resize", "scales": (), "video_pools": ((1, 1, 1),)}
    return replace(spec, vision=vision, projector=projector, decoder=decoder, **modes)


def measure(runners: Mapping[str, Runner], args: argparse.Namespace) -> dict[str, Speed]:
    """Prefill and decode in turns, so that what else the machine does meets all alike: best prefill, median step."""
    prefill_s: dict[str, list[float]] = {name: [] for name in runners}
    step_s: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(ROUNDS):
        for name, runner in runners.items():
            runner.reset()
            prefill_s[name].append(seconds(lambda run=runner.run: run(args.prompt)))
            step_s[name] += [seconds(lambda run=runner.run: run(1)) for _ in range(args.tokens // ROUNDS)]
    return {name: Speed(args.prompt / min(prefill_s[name]), 1 / statistics.median(step_s[name])) for name in runners}


def engine_runner(engine: Engine, args: argparse.Namespace) -> Runner:
    """Return one of our engines over one cache."""
    embeds = np.random.default_rng(1).standard_normal((args.prompt, engine.spec.decoder.width), np.float32)
    cache = engine.new_cache(args.prompt + args.tokens)
    return Runner(lambda: cache.truncate(0), lambda num_tokens: engine.forward(embeds[:num_tokens], cache))


def seconds(act: Callable[[], object]) -> float:
    """Return how long it takes."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def read_bandwidth(num_threads: int) -> float:
    """Return the bytes per second that all threads read together at best, each from memory of its own."""
    arrays = [np.ones(1 << 26, np.float32) for _ in range(num_threads)]  # 256 MiB each, beyond any cache

    def read_all() -> None:
        readers = [threading.Thread(target=array.sum) for array in arrays]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()

    return sum(array.nbytes for array in arrays) / min(seconds(read_all) for _ in range(5))


def bytes_per_step(spec: ModelSpec, head_bits: int, context: int) -> float:
    """Return what a decode step must read: matrices with scales and cache in float32."""
    decoder = spec.decoder
    total = 2 * decoder.num_layers * decoder.num_kv_heads * decoder.head_size * context * 4.0
    for key, shape in RandomWeights(spec, head_bits).quantized.items():
        bits = head_bits if key == HEAD else 4
        num_scales = shape[0] if bits == 8 else shape[0] * shape[1] // GROUP_SIZE
        total += shape[0] * shape[1] * bits / 8 + 4 * num_scales
    return total


def llama_missing() -> str | None:
    """Return why llama.cpp cannot be measured, or None."""
    missing = [name for name in ("llama_cpp", "gguf") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} not installed" if missing else None


def llama_runner(spec: ModelSpec, args: argparse.Namespace) -> Runner:
    """Return llama.cpp on a file that is written for it."""
    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, None)
    llama_cpp.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:  # a file that is mapped outlives its name
        path = Path(folder) / "random.gguf"
        write_gguf(spec, path)
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = args.prompt + args.tokens
    params.n_threads = params.n_threads_batch = args.threads
    context = llama_cpp.llama_init_from_model(model, params)

    def run(num_tokens: int) -> None:
        ids = (ctypes.c_int32 * num_tokens)(*range(1, num_tokens + 1))
        status = llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(ids, num_tokens))
        assert status == 0, f"llama_decode failed with {status}"

    return Runner(lambda: llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True), run, quiet)


def write_gguf(spec: ModelSpec, path: Path) -> None:
    """Write random weights of a decoder's shapes: matrices in Q4_0, the tied head among them, and no vocabulary."""
    import gguf

    decoder = spec.decoder
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(decoder.max_positions)
    writer.add_embedding_length(decoder.width)
    writer.add_block_count(decoder.num_layers)
    writer.add_feed_forward_length(decoder.mlp_width)
    writer.add_head_count(decoder.num_heads)
    writer.add_head_count_kv(decoder.num_kv_heads)
    writer.add_layer_norm_rms_eps(decoder.norm_eps)
    writer.add_rope_freq_base(decoder.rope_theta)
    writer.add_vocab_size(decoder.vocab_size)
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, decoder.num_layers)
    noise = np.random.default_rng(0).integers(0, 256, 1 << 20, dtype=np.uint8)
    for key, shape in expected_shapes(spec).items():
        if not key.startswith("llm."):
            continue
        name = names.get_name(key.removeprefix("llm."), try_suffixes=(".weight", ".bias"))
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, np.float32))
            continue
        blocks = np.resize(noise, (shape[0], shape[1] // BLOCK, BLOCK_BYTES))
        blocks[..., :2] = np.full(1, shape[1] ** -0.5 / 4.6, np.float16).view(np.uint8)
        writer.add_tensor(name, blocks.reshape(shape[0], -1), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    sys.exit(main())
