"""`nvila bench`: its figures hang together, and what it says a decode step reads is what the weights weigh."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nvila_ros.errors import BackendError, CheckpointError
from nvila_ros.models.build import to_tensors
from nvila_ros.models.checkpoint import TensorInfo, open_checkpoint
from nvila_ros.models.quantized import Int4Weight, Weight
from nvila_ros.runtime.loading import find_checkpoint
from nvila_ros.tools import bench
from nvila_ros.tools.bench import measure_apart
from nvila_ros.tools.cli import main
from nvila_ros.tools.speeds import BenchSettings, Figure, cache_bytes, step_bytes

pytestmark = pytest.mark.slow  # measures

try:
    TINY = open_checkpoint(find_checkpoint("nvila-tiny"))
except CheckpointError as missing:
    pytest.skip(str(missing), allow_module_level=True)

CONTEXT = 100


def plan(**changed: object) -> BenchSettings:
    fields = {
        "model": "nvila-tiny",
        "backend": "onnxruntime",
        "precision": "auto",
        "threads": 1,
        "image": (64, 48),
        "frames": 2,
    }
    return BenchSettings(**fields | {"prompt": 16, "tokens": 2, "repeats": 2} | changed)


def test_figures_hang_together(capfd: pytest.CaptureFixture[str]) -> None:
    options = "--threads 1 --image 64x48 --frames 4 --prompt 64 --tokens 4 --repeats 3"

    assert main(["bench", "nvila-tiny", *options.split()]) == 0

    *table, last = capfd.readouterr().out.splitlines()
    told = json.loads(last)
    assert any("first token about a clip of 4" in line for line in table)
    figures = [value for value in told.values() if isinstance(value, dict)]
    assert len(figures) == 5
    assert all(0 < figure["low"] <= figure["median"] <= figure["high"] for figure in figures)
    assert told["clip_tokens"] > told["image_tokens"]
    assert told["prompt_tokens"] == 64
    assert told["peak_bytes"] >= told["kept_bytes"] > told["step_bytes"]
    assert told["roofline"] == told["step_bytes"] * told["decode_tok_s"]["median"] / told["read_bytes_s"]


def test_a_prefill_leaves_positions_for_the_decode() -> None:
    told = measure_apart(plan(prompt=10**6, repeats=1))

    assert told["prompt_tokens"] == TINY.spec.decoder.max_positions - 2


def test_unknown_models_are_refused_before_a_process_is_started(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "nvila-none"]) == 2

    assert "no checkpoint at 'nvila-none'" in capsys.readouterr().err


def test_what_goes_wrong_in_the_other_process_is_told_in_this_one() -> None:
    with pytest.raises(BackendError, match="unknown backend 'abacus'"):
        measure_apart(plan(backend="abacus"))


def test_a_float_step_reads_every_matrix_of_the_decoder() -> None:
    weights = TINY.load("llm", dtype=np.float32)
    unread = {"llm.model.norm.weight"} | ({"llm.model.embed_tokens.weight"} if not TINY.spec.decoder.is_tied else set())
    expected = sum(array.nbytes for key, array in weights.items() if key not in unread)

    assert step_bytes(TINY, "onnxruntime", CONTEXT) == expected + cache_bytes(TINY.spec.decoder, CONTEXT)


@pytest.mark.parametrize(("backend", "head_bytes"), [("onnxruntime", 4), ("cpu", 1)])
def test_a_quantized_step_reads_packed_values_and_their_scales(backend: str, head_bytes: int) -> None:
    quantized = Int4Weight(np.zeros((256, 64), np.int8), np.ones((2, 64), np.float32))
    norm, embedding = np.ones(8, np.float32), np.ones((32, 8), np.float32)
    weights: dict[str, Weight] = {
        "llm.model.layers.0.mlp.up_proj.weight": quantized,
        "llm.model.layers.0.input_layernorm.weight": norm,
        "llm.model.embed_tokens.weight": embedding,
        "vision_tower.vision_model.embeddings.patch_embedding.weight": embedding,
    }
    tensors = {name: array for key, weight in weights.items() for name, array in to_tensors(key, weight).items()}
    infos = {name: TensorInfo(Path(), name, "", array.shape) for name, array in tensors.items()}
    source = SimpleNamespace(tensors=infos, spec=TINY.spec)

    expected = 256 * 64 // 2 + 4 * 2 * 64 + norm.nbytes + head_bytes * embedding.size

    told = step_bytes(source, backend, CONTEXT)  # type: ignore[arg-type]
    assert told == expected + cache_bytes(TINY.spec.decoder, CONTEXT)


def test_the_median_of_a_rate_lies_between_its_ends() -> None:
    rate = Figure.of([0.5, 0.1, 0.2]).per(10)

    assert (rate.low, rate.median, rate.high) == (20, 50, 100)


def test_bandwidth_is_that_of_the_fastest_read_by_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    durations_s = [4.0, 2.0, *[3.0] * (bench.NUM_READS - 2)]
    times_s = itertools.chain.from_iterable((0.0, duration_s) for duration_s in durations_s)
    monkeypatch.setattr(bench, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(times_s))

    assert bench.read_bandwidth(3) == 3 * (1 << 20) / 2.0


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (("--frames", "100000000"), "--frames of --image must take at most 4.3 GB, got 100000000 of 1280x720"),
        (("--image", "99999x99999"), "--frames of --image must take at most 4.3 GB, got 8 of 99999x99999"),
        (("--tokens", "100000"), "--tokens must be less than the 2048 positions of nvila-tiny, got 100000; lower it"),
    ],
)
def test_sizes_beyond_memory_or_positions_are_refused(
    capsys: pytest.CaptureFixture[str], options: tuple[str, str], rule: str
) -> None:
    assert main(["bench", "nvila-tiny", *options]) == 2
    assert rule in capsys.readouterr().err
