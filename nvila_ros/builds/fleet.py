"""How many robots one GPU of a server can answer: the roofline of `planning`, with questions of many robots in a batch.

A server with continuous batching reads pictures and prompts one after another, since those already fill the GPU, and
decodes a token of every answer in one step, which reads the weights once for all of them. So a question takes the time
of its pictures, its prompt and its share of the steps; how many share a step is bounded by memory for their keys and
values.

Waiting is that of a queue with random arrivals and even service (M/D/1). Nothing here was measured on a server.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nvila_ros.builds.planning import FITTED, GB, Device, Shares, Work, step_s, vision_s, work_of
from nvila_ros.models.spec import ModelSpec
from nvila_ros.models.variants import QUESTION_TOKENS, MediaCost, weight_bytes

MAX_BATCH = 256
"""Answers decoded at once: what SGLang and vLLM take by default, or less than that."""
UTILIZATION = 0.7
"""Share of a GPU's time that is planned with: beyond it, waiting grows fast."""
PRECISION = "fp16"
"""In which servers run published checkpoints: in two bytes a weight."""


@dataclass(frozen=True, slots=True)
class FleetForecast:
    """What one GPU does for a fleet.

    Attributes:
        batch: answers that are decoded at once, at most; 0 where not one fits.
        question_s: GPU time of one question in a full batch.
        answers_per_s: of one GPU that never waits.
        first_s: to the first token where nobody else asks.
        loaded_first_s: the same, on average, at `UTILIZATION`.
        needed_gb: weights, and keys and values of one question.
        free_gb: what the device has for them.
    """

    batch: int
    question_s: float
    answers_per_s: float
    first_s: float
    loaded_first_s: float
    needed_gb: float
    free_gb: float

    def robots(self, rate_hz: float) -> int:
        """Return how many robots one GPU serves that each ask so often."""
        return math.floor(UTILIZATION * self.answers_per_s / rate_hz + 1e-9)

    def num_gpus(self, num_robots: int, rate_hz: float) -> int:
        """Return how many GPUs serve that many robots; 0 where the model does not fit."""
        return math.ceil(num_robots * rate_hz / (UTILIZATION * self.answers_per_s) - 1e-9) if self.batch else 0


def forecast_fleet(
    spec: ModelSpec,
    device: Device,
    media: MediaCost,
    *,
    num_answer: int,
    num_text: int = QUESTION_TOKENS,
    shares: Shares = FITTED,
) -> FleetForecast:
    """Predict what one GPU does for a fleet whose questions are alike.

    Args:
        spec: the model.
        device: the GPU.
        media: tiles and prompt positions of what is asked about; no two questions share a picture.
        num_answer: tokens of an answer; 1 or 2 of a choice.
        num_text: prompt positions of the question and the chat's frame.
        shares: reached of the datasheet's figures.
    """
    work = work_of(spec, PRECISION, PRECISION)
    num_prompt = media.num_positions + num_text
    weights = sum(weight_bytes(spec, PRECISION).values())
    per_answer = work.kv_bytes * (num_prompt + num_answer)
    free = (device.memory_gb - device.reserved_gb) * GB
    batch = max(0, min(MAX_BATCH, math.floor((free - weights) / per_answer)))
    alone_s = vision_s(work, device, media.num_tiles, shares) + _compute_s(work, device, num_prompt, shares)
    question_s = alone_s + num_answer * batch_step_s(work, device, num_prompt, batch, shares) / max(batch, 1)
    wait_s = question_s * UTILIZATION / (2 * (1 - UTILIZATION))
    return FleetForecast(
        batch=batch,
        question_s=question_s,
        answers_per_s=1 / question_s if batch else 0.0,
        first_s=alone_s + step_s(work, device, num_prompt, shares),
        loaded_first_s=alone_s + batch_step_s(work, device, num_prompt, batch, shares) + wait_s,
        needed_gb=(weights + per_answer) / GB,
        free_gb=free / GB,
    )


def batch_step_s(work: Work, device: Device, num_cached: int, batch: int, shares: Shares) -> float:
    """Return the seconds of decoding one token of each answer of a batch.

    The weights are read once, keys and values of each; where that is faster than the arithmetic, the arithmetic counts.
    """
    read_s = step_s(work, device, num_cached * max(batch, 1), shares)
    return max(read_s, _compute_s(work, device, batch, shares))


def _compute_s(work: Work, device: Device, num_positions: int, shares: Shares) -> float:
    return work.token_flops * num_positions / (device.fp16_tflops * 1e12 * shares.prefill)
