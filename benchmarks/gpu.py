"""The backend `cuda` on a GPU, in at most eight minutes and without a network: is it right, and near to the limits?

Answers nvila-tiny's questions on the device and in float32 on the CPU; runs `pytest -m gpu`; then times models of
random weights with published shapes, in bfloat16 and with an eight-bit tower and a four-bit language model: a step, a
prompt of 2,048 tokens, tiles, ten short questions about one prompt as branches of a tree. Figures are beside the
bandwidth and the matrix peak that the same run measured, and beside transformers' decoder of the same shapes, eager and
compiled with a static cache, where that package is there. Prints a table and, last, one JSON line. To try the script
itself without a GPU, give `--device cpu --layers 1 --questions 11`: two minutes on two cores, with a shorter prompt.

    .venv/bin/python -m benchmarks.gpu
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.quantized import Int4Weight, Int8Weight, Weight
from nvila_ros.models.shapes import expected_shapes
from nvila_ros.models.spec import ModelSpec
from nvila_ros.models.variants import VARIANTS
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.contract import PREFILL_CHUNK, Tree
from nvila_ros.runtime.cuda.device import choose_dtype
from nvila_ros.runtime.cuda.engine import CudaEngine
from nvila_ros.runtime.cuda.steps import capture_cuda
from nvila_ros.runtime.loading import find_checkpoint, load_engine
from nvila_ros.runtime.rounded import is_rounded
from nvila_ros.serving.pipeline import VisionLanguageModel
from nvila_ros.tools.options import positive, print_json
from nvila_ros.types import Frame, Query
from nvila_ros.world.questions import EVAL_KINDS, eval_case
from nvila_ros.world.rendering import render

PROMPT_TOKENS, NUM_STEPS, NUM_BRANCHES, BRANCH_TOKENS = 2048, 32, 10, 12
COPY_BYTES, MATRIX = 1 << 30, 8192
TRIAL_PROMPT, TRIAL_STEPS = 256, 2  # without a GPU, where the figures say nothing
GROUP = 128
SEED_BASE = 50_000


@dataclass(frozen=True)
class RandomModel:
    """A `ModelSource` of random weights, made when they are asked for."""

    spec: ModelSpec
    is_quantized: bool

    def weights(self) -> Mapping[str, Weight]:
        """Return the tensors by key."""
        return _RandomWeights(self)


class _RandomWeights(Mapping[str, Weight]):
    def __init__(self, model: RandomModel) -> None:
        self._model, self._shapes = model, expected_shapes(model.spec)
        rng = np.random.default_rng(0)
        self._noise = rng.normal(0, 0.02, 1 << 20).astype(ml_dtypes.bfloat16)
        self._levels = rng.integers(-8, 8, 1 << 20, np.int8)

    def __getitem__(self, key: str) -> Weight:
        shape = self._shapes[key]
        if not self._model.is_quantized or not is_rounded(key, shape):
            return np.resize(self._noise, shape)
        num_outputs, num_inputs = shape
        values = np.resize(self._levels, (num_inputs, num_outputs))
        if key.startswith("llm."):
            return Int4Weight(values, np.full((num_inputs // GROUP, num_outputs), 0.005, np.float32))
        return Int8Weight(values, np.full(num_outputs, 0.005, np.float32), None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def main() -> int:
    """Run the benchmark; 1 where answers differ or a test fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: to try the script")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["NVILA-Lite-2B", "NVILA-8B"])
    parser.add_argument("--layers", type=positive, help="of tower and language model, to try the script")
    parser.add_argument("--questions", type=positive, default=200, help="to nvila-tiny (default: %(default)s)")
    args = parser.parse_args()
    device, console = torch.device(args.device), Console(highlight=False, width=130)
    same = parity(device, args.questions)
    console.print(f"nvila-tiny: {same:.4f} of {args.questions} answers as in float32")
    tests = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu"], capture_output=True, text=True)
    console.print(f"pytest -m gpu: {tests.stdout.strip().splitlines()[-1]}")
    limits = measure_limits(device)
    rows = []
    for name, is_quantized in itertools.product(args.variants, (False, True)):
        spec = shorten(VARIANTS[name].spec, args.layers)
        rows.append({"model": name, **measure(RandomModel(spec, is_quantized), device, limits)})
        console.print(rows[-1])
    peers = [
        {"model": name, **transformers_step(shorten(VARIANTS[name].spec, args.layers), device)}
        for name in args.variants
    ]
    console.print(as_table(rows, peers))
    print_json(
        {"benchmark": "gpu", "gpu": gpu_name(device), "same": same, **limits, "rows": rows, "transformers": peers}
    )
    return int(same < 0.99 or tests.returncode not in (0, 5))


def gpu_name(device: torch.device) -> str:
    """Return the name of the GPU."""
    return torch.cuda.get_device_name() if device.type == "cuda" else "none: torch's CPU device"


def shorten(spec: ModelSpec, num_layers: int | None) -> ModelSpec:
    """Return a spec with fewer layers, where that is asked for."""
    if num_layers is None:
        return spec
    vision = dataclasses.replace(spec.vision, num_layers=num_layers + 1, num_live_layers=num_layers)
    return dataclasses.replace(spec, vision=vision, decoder=dataclasses.replace(spec.decoder, num_layers=num_layers))


def new_engine(source: Any, device: torch.device) -> CudaEngine:
    """Return an engine on the device, its steps captured where it is a GPU."""
    return CudaEngine(source, device, choose_dtype(source.spec), capture_cuda if device.type == "cuda" else None)


def parity(device: torch.device, num_questions: int) -> float:
    """Return the share of nvila-tiny's answers that are those of float32."""
    checkpoint = open_checkpoint(find_checkpoint("nvila-tiny"))
    tokenizer = ChatTokenizer.from_folder(checkpoint.tokenizer_folder)
    engines = new_engine(checkpoint, device), load_engine(checkpoint, "torch")
    models = [VisionLanguageModel(engine, tokenizer, backend="gpu") for engine in engines]
    cases = ((kind, eval_case(kind, index)) for index in itertools.count(SEED_BASE) for kind in EVAL_KINDS)
    num_same = 0
    for kind, case in itertools.islice(cases, num_questions):
        frames = [Frame(image=render(case.scene, t_s, 640, 480), stamp_ns=round(t_s * 1e9)) for t_s in case.times_s]
        query = Query(query_id=kind, question=case.question.text, num_frames=len(frames), max_tokens=16)
        got, want = (model.answer(query, frames).text for model in models)
        num_same += got == want
    return round(num_same / num_questions, 4)


def measure_limits(device: torch.device) -> dict[str, float]:
    """Return the bytes a second of a copy, read and written, and the operations a second of a product in bfloat16."""
    is_gpu = device.type == "cuda"
    source = torch.empty(COPY_BYTES if is_gpu else COPY_BYTES >> 5, dtype=torch.uint8, device=device)
    target, size = torch.empty_like(source), MATRIX if is_gpu else MATRIX >> 4
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    copy_s = seconds(lambda: target.copy_(source), device)
    product_s = seconds(lambda: torch.mm(a, b), device)
    return {"bytes_s": 2 * len(source) / copy_s, "flops_s": 2 * size**3 / product_s}


def seconds(act: Callable[[], object], device: torch.device, repeats: int = 7) -> float:
    """Return the median time of an act on the device, behind two that are not counted."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def measure(source: RandomModel, device: torch.device, limits: Mapping[str, float]) -> dict[str, Any]:
    """Return times of one model, and their share of the limits."""
    started = time.perf_counter()
    engine = new_engine(source, device)
    load_s, spec = time.perf_counter() - started, source.spec
    rng = np.random.default_rng(0)
    length, num_steps = (PROMPT_TOKENS, NUM_STEPS) if device.type == "cuda" else (TRIAL_PROMPT, TRIAL_STEPS)
    embeds = engine.embed(rng.integers(0, 1000, length))
    cache = engine.new_cache(length + num_steps + NUM_BRANCHES * BRANCH_TOKENS)
    px = spec.vision.image_px
    tiles = rng.uniform(-1, 1, (engine.batch_tiles, 3, px, px)).astype(np.float32)

    def prefill() -> None:
        cache.truncate(0)
        for start in range(0, length, PREFILL_CHUNK):
            engine.forward_top(embeds[start : start + PREFILL_CHUNK], cache)

    def decode() -> None:
        cache.truncate(length)
        for _ in range(num_steps):
            engine.forward_top(embeds[:1], cache)

    prefill_s = seconds(prefill, device, 3)
    step_s = seconds(decode, device, 3) / num_steps
    tile_s = seconds(lambda: engine.vision(tiles), device, 3) / len(tiles)
    cache.truncate(length)
    branches_s = seconds(lambda: ask_branches(engine, cache, embeds, length), device, 3)
    alone_s = seconds(lambda: (cache.truncate(length), engine.forward(embeds[:BRANCH_TOKENS], cache)), device, 3)
    layers = [
        shape for key, shape in expected_shapes(spec).items() if key.startswith("llm.") and is_rounded(key, shape)
    ]
    num_weights = sum(int(np.prod(shape)) for shape in layers)
    head = spec.decoder.vocab_size * spec.decoder.width
    step_bytes = num_weights * (0.5 + 2 / GROUP if source.is_quantized else 2) + 2 * head
    return {
        "precision": "w8a8+w4a16" if source.is_quantized else engine.precision,
        "load_s": round(load_s, 1),
        "decode_tok_s": round(1 / step_s, 1),
        "of_bandwidth": round(step_bytes / step_s / limits["bytes_s"], 3),
        "prefill_tok_s": round(length / prefill_s),
        "of_peak": round(2 * (num_weights * length + head) / prefill_s / limits["flops_s"], 3),
        "tile_ms": round(tile_s * 1000, 2),
        "ten_questions_of_one": round(branches_s / alone_s, 2),
        "gpu_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if device.type == "cuda" else None,
    }


def ask_branches(engine: CudaEngine, cache: Any, embeds: np.ndarray, length: int) -> None:
    """Append ten short questions behind a prompt of a length as branches of a tree."""
    cache.truncate(length)
    count = NUM_BRANCHES * BRANCH_TOKENS
    branch, place = np.divmod(np.arange(count), BRANCH_TOKENS)
    same = (branch[:, None] == branch) & (place <= place[:, None])
    sees = np.concatenate([np.ones((count, length), bool), same], axis=1)
    tree = Tree(length + place, sees, np.flatnonzero(place == BRANCH_TOKENS - 1))
    engine.forward_tree(embeds[:count], cache, tree)


def transformers_step(spec: ModelSpec, device: torch.device) -> dict[str, Any]:
    """Return the decode speed of transformers' Qwen2 of these shapes in bfloat16, eager and compiled."""
    try:
        from transformers import Qwen2Config, Qwen2ForCausalLM, StaticCache
    except ImportError as error:
        return {"missing": str(error).splitlines()[0]}
    decoder = spec.decoder
    config = Qwen2Config(
        vocab_size=decoder.vocab_size,
        hidden_size=decoder.width,
        intermediate_size=decoder.mlp_width,
        num_hidden_layers=decoder.num_layers,
        num_attention_heads=decoder.num_heads,
        num_key_value_heads=decoder.num_kv_heads,
        tie_word_embeddings=decoder.is_tied,
    )
    with device, torch.inference_mode():
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = Qwen2ForCausalLM(config).eval()
        finally:
            torch.set_default_dtype(torch.float32)
        cache = StaticCache(config=config, max_cache_len=PROMPT_TOKENS + NUM_STEPS)
        ids, positions = torch.zeros(1, 1, dtype=torch.int64), torch.full((1,), PROMPT_TOKENS)
        figures: dict[str, Any] = {}
        steps = {"eager": model, "compiled": torch.compile(model, mode="reduce-overhead")}
        for name, step in steps.items() if device.type == "cuda" else [("eager", model)]:
            run = partial(step, ids, past_key_values=cache, cache_position=positions)
            figures[f"{name}_tok_s"] = round(1 / seconds(run, device, 16), 1)
    return figures


def as_table(rows: list[dict[str, Any]], peers: list[dict[str, Any]]) -> Table:
    """Return the figures, transformers' speed beside ours."""
    table = Table(*rows[0], "transformers")
    by_model = {peer["model"]: {key: value for key, value in peer.items() if key != "model"} for peer in peers}
    for row in rows:
        table.add_row(*map(str, row.values()), str(by_model[row["model"]]))
    return table


if __name__ == "__main__":
    raise SystemExit(main())
