"""This repository's engines: the CPU engine on quantized weights, and OpenVINO and ONNX Runtime on the float tower."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from benchmarks.peers.clock import seconds
from benchmarks.peers.job import PeerJob, Round, random_ids
from benchmarks.peers.weights import FloatModel, RandomWeights
from nvila_ros.models.quantized import Weight
from nvila_ros.models.spec import ModelSpec
from nvila_ros.runtime.contract import Engine

NEEDS = ("openvino",)


def prepare(kind: str, job: PeerJob) -> None:
    """Write nothing: our engines take arrays."""


def load(kind: str, job: PeerJob) -> Round:
    """Return the round of the decoder, or of the tower where the kind begins with `tower`."""
    if kind == "decoder":
        return decoder_round(load_cpu_engine(job.decoder_spec, job), job)
    if kind == "tower w8a8":
        return tower_round(load_cpu_engine(job.tower_spec, job))
    if kind == "tower w8a8 by token":
        weights = RandomWeights(job.tower_spec, job.head_bits, input_scale=None)
        return tower_round(cpu_loader()(job.tower_spec, weights, job.threads))
    if kind == "tower fp32 onnxruntime":
        from nvila_ros.runtime.onnxruntime.engine import OnnxRuntimeEngine

        return tower_round(OnnxRuntimeEngine(FloatModel(job.tower_spec), job.threads))  # type: ignore[arg-type]
    spec = job.tower_spec
    return tower_round(cpu_loader()(spec, FloatModel(spec).weights(), job.threads))


def cpu_loader() -> Callable[[ModelSpec, Mapping[str, Weight], int], Engine]:
    """Return what loads quantized weights for the `cpu` backend, which needs OpenVINO."""
    from nvila_ros.runtime.cpu.engine import load_quantized

    return load_quantized


def load_cpu_engine(spec: ModelSpec, job: PeerJob) -> Engine:
    """Return the engine over random weights, quantized as `nvila build` does."""
    return cpu_loader()(spec, RandomWeights(spec, job.head_bits), job.threads)


def decoder_round(engine: Engine, job: PeerJob) -> Round:
    """Return a round of prefill and decode over one cache; embeddings are looked up in it, as in every runtime."""
    cache = engine.new_cache(job.prompt + job.tokens)
    rounds = iter(range(1 << 30))

    def run() -> Mapping[str, list[float]]:
        cache.truncate(0)
        ids = random_ids(job, next(rounds))
        prefill_s = seconds(lambda: engine.forward(engine.embed(ids), cache))
        step_s = [seconds(lambda i=i: engine.forward(engine.embed(ids[i : i + 1]), cache)) for i in range(job.tokens)]
        return {"prefill": [prefill_s], "decode": step_s}

    return run


def tower_round(engine: Engine) -> Round:
    """Return a round of one tile."""
    tile = np.random.default_rng(1).uniform(-1, 1, (1, 3, *[engine.spec.vision.image_px] * 2)).astype(np.float32)
    return lambda: {"tile": [seconds(lambda: engine.vision(tile))]}
