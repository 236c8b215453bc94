"""Predict the memory and speed of an engine: a roofline of bandwidth, arithmetic and memory.

Decoding one token reads every weight once, so its time is bytes over bandwidth; encoding a tile and reading the prompt
multiply, so theirs is operations over the arithmetic rate. Each is a share of the datasheet's figure, and a step costs
a fixed time for each layer besides. `benchmarks/plan.py` fits the shares on published measurements and prints the error
of every row; nothing here was measured on the devices by this project.

Sources: NVIDIA's datasheets (dense arithmetic, not sparse), and those of `published.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nvila_ros.models.shapes import expected_shapes
from nvila_ros.models.spec import ModelSpec
from nvila_ros.models.variants import GROUP_SIZE, PRECISIONS, QUESTION_TOKENS, MediaCost, kv_bytes, weight_bytes
from nvila_ros.runtime.contract import PREFILL_CHUNK

GB = 1e9
QUANTIZED = PRECISIONS[-1]


@dataclass(frozen=True, slots=True)
class Device:
    """A machine, by its datasheet.

    Attributes:
        bandwidth_gb_s: memory bandwidth.
        fp16_tflops: dense, of the GPU's tensor cores.
        memory_gb: all there is, shared with the system on Jetson.
        reserved_gb: what the system, ROS and the CUDA context take of it.
    """

    name: str
    bandwidth_gb_s: float
    fp16_tflops: float
    memory_gb: float
    reserved_gb: float


DEVICES = {
    device.name: device
    for device in (
        Device("orin-nano", 68, 10, 8, 2.5),
        Device("orin-nano-super", 102, 17, 8, 2.5),
        Device("orin-nx", 102, 19, 16, 3),
        Device("agx-orin", 204.8, 42.5, 64, 4),
        Device("thor", 273, 258, 128, 5),
        Device("rtx-4090", 1008, 165, 24, 1),
        Device("l4", 300, 121, 24, 1),
        Device("l40s", 864, 362, 48, 1),
        Device("a100", 2039, 312, 80, 1),
        Device("h100", 3350, 989, 80, 1),
    )
}


@dataclass(frozen=True, slots=True)
class Shares:
    """The reached shares of a datasheet's figures.

    Attributes:
        bandwidth: share of the memory bandwidth in decoding.
        vision: share of the fp16 rate in the tower.
        int8_gain: how many times faster the tower is in INT8; operations between the products stay in FP16.
        prefill: share of the fp16 rate in reading the prompt.
        layer_us: fixed microseconds of one layer in one step.
    """

    bandwidth: float
    vision: float
    int8_gain: float
    prefill: float
    layer_us: float


@dataclass(frozen=True, slots=True)
class Work:
    """The work of a model.

    Attributes:
        num_layers: of the language model.
        step_bytes: read to decode one token, without the KV cache.
        kv_bytes: of one position.
        token_flops: of one prompt position through the language model's linear maps.
        tile_flops: of one tile through the tower.
        is_tower_int8: whether the tower multiplies in INT8.
    """

    num_layers: int
    step_bytes: float
    kv_bytes: float
    token_flops: float
    tile_flops: float = 0.0
    is_tower_int8: bool = False


@dataclass(frozen=True, slots=True)
class Forecast:
    """The predicted cost of a question about one image or clip.

    Attributes:
        num_prompt: prompt positions.
        needed_gb: weights, KV cache and buffers.
        free_gb: what the device has for them.
    """

    num_prompt: int
    vision_s: float
    prefill_s: float
    tokens_per_s: float
    needed_gb: float
    free_gb: float

    @property
    def ttft_s(self) -> float:
        """Seconds to the first token."""
        return self.vision_s + self.prefill_s

    @property
    def fits(self) -> bool:
        """Whether the memory suffices."""
        return self.needed_gb <= self.free_gb


def work_of(
    spec: ModelSpec, vision: str, decoder: str, *, group_size: int = GROUP_SIZE, is_head_int4: bool = False
) -> Work:
    """Return the work of a model with tower and language model each in one of `variants.PRECISIONS`.

    Group size and head are those of `variants.weight_bytes`: of no effect on weights that are not quantized.
    """
    shapes = expected_shapes(spec)
    linear = {key: math.prod(shape) for key, shape in shapes.items() if ".layers." in key and len(shape) == 2}
    tower = spec.vision
    products = sum(size for key, size in linear.items() if key.startswith("vision_tower."))
    attention = 4 * tower.num_live_layers * tower.num_patches**2 * tower.width
    table = spec.decoder.vocab_size * spec.decoder.width * (4 if decoder == "fp32" else 2)
    # Of the embedding table one row is read a step, of the head all; a tied table is both, but of a head in int4.
    is_both = spec.decoder.is_tied and not (is_head_int4 and decoder == QUANTIZED)
    unread = 0 if is_both else table
    num_bytes = weight_bytes(spec, decoder, group_size=group_size, is_head_int4=is_head_int4)["llm"]
    return Work(
        num_layers=spec.decoder.num_layers,
        step_bytes=num_bytes - unread,
        kv_bytes=kv_bytes(spec, 1),
        token_flops=2 * sum(size for key, size in linear.items() if key.startswith("llm.")),
        tile_flops=2 * products * tower.num_patches + attention,
        is_tower_int8=vision == QUANTIZED,
    )


def forecast(
    spec: ModelSpec,
    device: Device,
    media: MediaCost,
    *,
    vision: str = QUANTIZED,
    decoder: str = QUANTIZED,
    group_size: int = GROUP_SIZE,
    is_head_int4: bool = False,
    num_text: int = QUESTION_TOKENS,
    num_answer: int = 64,
) -> Forecast:
    """Predict the cost of a question about an image or a clip.

    Args:
        spec: the model.
        device: where it runs.
        media: tiles and prompt positions of what is asked about.
        vision: precision of the tower, one of `variants.PRECISIONS`.
        decoder: precision of the language model, alike.
        group_size: inputs that share a scale in four bits.
        is_head_int4: the head is in four bits as well.
        num_text: prompt positions of the question and the chat's frame.
        num_answer: tokens of the answer.
    """
    work = work_of(spec, vision, decoder, group_size=group_size, is_head_int4=is_head_int4)
    num_prompt = media.num_positions + num_text
    by_part = {"vision_tower": vision, "mm_projector": vision, "llm": decoder}
    weights = sum(
        weight_bytes(spec, precision, group_size=group_size, is_head_int4=is_head_int4)[part]
        for part, precision in by_part.items()
    )
    # A tile's widest layer and that of a chunk of the prompt, in fp16, twice.
    buffers = 4 * (spec.vision.num_patches * spec.vision.mlp_width + PREFILL_CHUNK * spec.decoder.mlp_width)
    return Forecast(
        num_prompt=num_prompt,
        vision_s=vision_s(work, device, media.num_tiles, FITTED),
        prefill_s=prefill_s(work, device, num_prompt, FITTED),
        tokens_per_s=1 / step_s(work, device, num_prompt, FITTED),
        needed_gb=(weights + work.kv_bytes * (num_prompt + num_answer) + buffers) / GB,
        free_gb=device.memory_gb - device.reserved_gb,
    )


def step_s(work: Work, device: Device, num_cached: int, shares: Shares) -> float:
    """Return the seconds of decoding one token."""
    num_bytes = work.step_bytes + work.kv_bytes * num_cached
    return num_bytes / (device.bandwidth_gb_s * GB * shares.bandwidth) + work.num_layers * shares.layer_us * 1e-6


def prefill_s(work: Work, device: Device, num_positions: int, shares: Shares) -> float:
    """Return the seconds of reading a prompt: as long as its arithmetic takes, but no shorter than one step."""
    compute = work.token_flops * num_positions / (device.fp16_tflops * 1e12 * shares.prefill)
    return max(compute, step_s(work, device, 0, shares))


def vision_s(work: Work, device: Device, num_tiles: int, shares: Shares) -> float:
    """Return the seconds of encoding tiles."""
    seconds = work.tile_flops * num_tiles / (device.fp16_tflops * 1e12 * shares.vision)
    return seconds / shares.int8_gain if work.is_tower_int8 else seconds


FITTED = Shares(bandwidth=0.9, vision=0.48, int8_gain=1.3, prefill=0.43, layer_us=78.0)
"""By `benchmarks/plan.py`, on published measurements."""
