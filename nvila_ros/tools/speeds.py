"""Measure one model in this process: tower, prefill, decode, first token, loading, memory.

Every figure is measured several times after a first run that is not counted. Pictures are new noise each time, so that
no cache has them. The memory figures are those of the process, so it measures one model and nothing else.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nvila_ros.errors import ConfigError, NvilaError
from nvila_ros.models.checkpoint import TensorInfo
from nvila_ros.models.shapes import EMBEDDING, HEAD
from nvila_ros.models.spec import DecoderSpec
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.contract import Engine, TopEngine
from nvila_ros.runtime.loading import choose_backend, find_checkpoint, load_engine, open_model
from nvila_ros.runtime.rounded import AnyModel, RoundedCheckpoint, choose_precision, rounded_bytes
from nvila_ros.serving.pipeline import VisionLanguageModel
from nvila_ros.types import Answer, Frame, Query

ROUNDS_HEAD = ("cpu",)
"""Backends that keep a float head beside a quantized decoder in eight bits."""
GPU_BACKENDS = ("tensorrt", "cuda")
"""Backends that hold floats in half precision, in memory of their own."""
MAX_S = 20.0  # of one figure; a slow model is measured less often, but twice at least
QUESTION = "What is there to see?"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """What to measure.

    Attributes:
        image: width and height of a picture, px.
        frames: of a clip.
        prompt: tokens of the prefill; fewer where the model has not as many positions.
        tokens: decode steps behind it.
    """

    model: str
    backend: str
    precision: str
    threads: int
    image: tuple[int, int]
    frames: int
    prompt: int
    tokens: int
    repeats: int


@dataclass(frozen=True, slots=True)
class Figure:
    """A median and its spread."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Figure:
        """Return the median and range of measurements."""
        return Figure(statistics.median(values), min(values), max(values))

    def per(self, number: float) -> Figure:
        """Return `number` divided by it: seconds become a rate, and the slowest is now the lowest."""
        return Figure(number / self.median, number / self.high, number / self.low)


def measure(settings: BenchSettings, report: Callable[[str], object]) -> dict[str, Any]:
    """Load the model and return all figures: times in seconds, memory in bytes.

    Raises:
        NvilaError: there is no such model or backend, or the model does not load.
    """
    source = open_model(find_checkpoint(settings.model))
    report("loading")
    start = time.perf_counter()
    backend = choose_backend(source, settings.backend)
    rounded = choose_precision(source, backend, settings.precision)
    engine = load_engine(rounded, backend, settings.threads)
    vlm = VisionLanguageModel(engine, ChatTokenizer.from_folder(source.tokenizer_folder), backend=backend)
    load_s = time.perf_counter() - start
    vlm.warm_up()
    kept_bytes = memory_bytes("VmRSS")
    positions = engine.spec.decoder.max_positions
    if settings.tokens >= positions:
        raise ConfigError(
            f"--tokens must be less than the {positions} positions of {source.spec.name}, got {settings.tokens}; "
            "lower it"
        )
    prompt = min(settings.prompt, positions - settings.tokens)
    figures: dict[str, Any] = {
        "model": vlm.info.model,
        "backend": backend,
        "precision": vlm.info.precision,
        "load_s": load_s,
    }
    for name, act in (
        ("vision_s", lambda: _tile_s(engine, settings)),
        ("prefill_tok_s", lambda: _prefill_s(engine, prompt, settings).per(prompt)),
        ("decode_tok_s", lambda: _step_s(engine, prompt, settings).per(1)),
    ):
        report(name)
        figures[name] = asdict(act())
    seeds = itertools.count()
    for name, num_frames in (("image", 1), ("clip", settings.frames)):
        report(f"{name}_ttft_s")
        figures |= {f"{name}_{key}": value for key, value in _ask(vlm, num_frames, settings, seeds).items()}
    context = prompt + settings.tokens // 2
    figures |= {"prompt_tokens": prompt, "step_bytes": step_bytes(rounded, backend, context)}
    return figures | {"kept_bytes": kept_bytes, "peak_bytes": memory_bytes("VmHWM")}


def step_bytes(source: AnyModel, backend: str, context: int) -> int:
    """Return the bytes that a decode step must read at least, behind `context` tokens.

    Quantized matrices count as stored, others as float32, or float16 on a GPU; the cache has two bytes a value.
    """
    if isinstance(source, RoundedCheckpoint):
        return rounded_step_bytes(source) + cache_bytes(source.spec.decoder, context)
    tensors = source.tensors
    head = HEAD if f"{HEAD}.values" in tensors or HEAD in tensors else EMBEDDING
    is_quantized = "llm.model.layers.0.mlp.up_proj.weight.values" in tensors
    total = 0
    for key, info in tensors.items():
        if not key.startswith(("llm.model.layers.", head)):
            continue
        is_rounded = key == head and is_quantized and backend in ROUNDS_HEAD
        total += math.prod(info.shape) if is_rounded else _held_bytes(key, info, 2 if backend in GPU_BACKENDS else 4)
    return total + cache_bytes(source.spec.decoder, context)


def rounded_step_bytes(source: RoundedCheckpoint) -> int:
    """Return the bytes of a rounded language model that a step reads: its layers, and its head in eight bits."""
    spec = source.spec
    return rounded_bytes(spec, source.bits, "llm.model.layers.") + spec.decoder.vocab_size * spec.decoder.width


def cache_bytes(spec: DecoderSpec, context: int) -> int:
    """Return the bytes of keys and values of so many tokens, two a value."""
    return 2 * 2 * spec.num_layers * spec.num_kv_heads * spec.head_size * context


def _held_bytes(key: str, info: TensorInfo, float_bytes: int) -> int:
    return math.prod(info.shape) * (1 if key.endswith(".values") else float_bytes)


def _tile_s(engine: Engine, settings: BenchSettings) -> Figure:
    size = engine.spec.vision.image_px
    tile = np.random.default_rng(0).uniform(-1, 1, (1, 3, size, size)).astype(np.float32)
    return Figure.of(_repeat(lambda: _seconds(lambda: engine.vision(tile)), settings))


def _prefill_s(engine: Engine, prompt: int, settings: BenchSettings) -> Figure:
    embeds, cache = _random_embeds(engine, prompt), engine.new_cache(prompt)

    def once() -> float:
        cache.truncate(0)
        return _seconds(lambda: engine.forward(embeds, cache))

    return Figure.of(_repeat(once, settings))


def _step_s(engine: Engine, prompt: int, settings: BenchSettings) -> Figure:
    """Return the seconds of a decode step: the median of each repeat, since a rare long step is the machine's."""
    cache = engine.new_cache(prompt + settings.tokens)
    engine.forward(_random_embeds(engine, prompt), cache)
    # As answers are decoded: an engine that finds the best logits on its device returns those alone.
    step = engine.forward_top if isinstance(engine, TopEngine) else lambda x, held: engine.forward(x, held).argmax()

    def once() -> float:
        cache.truncate(prompt)
        ids = np.arange(1)
        steps = [_seconds(lambda: step(engine.embed(ids), cache)) for _ in range(settings.tokens)]
        return statistics.median(steps)

    return Figure.of(_repeat(once, settings))


def _ask(vlm: VisionLanguageModel, num_frames: int, settings: BenchSettings, seeds: Iterator[int]) -> dict[str, Any]:
    """Return the time to the first token of a question about noise, with its frames and tokens; no seed is reused."""
    answers: list[Answer] = []

    def once() -> float:
        frames = [_noise(next(seeds), settings.image) for _ in range(num_frames)]
        answers.append(vlm.answer(replace(_query(), num_frames=num_frames), frames))
        return answers[-1].timings.ttft_s

    figure = Figure.of(_repeat(once, settings))
    last = answers[-1]
    return {"ttft_s": asdict(figure), "frames": len(last.frames), "tokens": last.counts.num_prompt_tokens}


def _query() -> Query:
    return Query(query_id="bench", question=QUESTION, max_tokens=1)


def _noise(seed: int, image: tuple[int, int]) -> Frame:
    pixels = np.random.default_rng(seed).integers(0, 256, (image[1], image[0], 3), dtype=np.uint8)
    return Frame(image=pixels, stamp_ns=seed * 10**8)


def _random_embeds(engine: Engine, num_tokens: int) -> np.ndarray:
    """Return embeddings of ids that any vocabulary has, (L, D)."""
    return engine.embed(np.random.default_rng(0).integers(0, 64, num_tokens))


def _repeat(once: Callable[[], float], settings: BenchSettings) -> list[float]:
    """Return seconds of each repeat; the first run is not counted."""
    once()
    start, seconds = time.monotonic(), []
    for i in range(settings.repeats):
        if i >= 2 and time.monotonic() - start > MAX_S:
            break
        seconds.append(once())
    return seconds


def _seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def memory_bytes(key: str) -> int:
    """Return this process's memory: `VmRSS`, what is resident now, or `VmHWM`, the most that ever was."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def main() -> int:
    """Measure with the settings given as JSON; print progress to stderr, the figures or the error as a JSON line."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a runtime prints by itself must not stand between
    try:
        values = json.loads(sys.argv[1])
        settings = BenchSettings(**values | {"image": tuple(values["image"])})
        figures: Mapping[str, Any] = measure(settings, lambda text: print(text, file=sys.stderr, flush=True))
    except NvilaError as error:
        figures = {"error": str(error)}
    print(json.dumps(figures), file=out, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
