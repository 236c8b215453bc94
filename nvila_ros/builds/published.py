"""Published measurements of such models, and what the roofline of `planning.py` predicts for them.

Sources: NVIDIA TensorRT-Edge-LLM 0.9.0 (INT4 AWQ, batch 1; the engine nearest to ours); NVILA (arXiv 2412.04468),
figure 6; TinyChat by NVLabs/VILA's README. The shares are fitted on the first two, TinyChat's rows are held out.
"""

from __future__ import annotations

from dataclasses import dataclass

from nvila_ros.builds.planning import DEVICES, QUANTIZED, Shares, Work, prefill_s, step_s, vision_s, work_of
from nvila_ros.models.variants import VARIANTS

POSITIONS = 292  # of the prompts of the published rows
INT4_BITS = 4 + 16 / 128  # a scale of 16 bits for each group of 128


@dataclass(frozen=True, slots=True)
class PublishedFigure:
    """One published measurement: `decode` in tokens/s, `prefill` and `vision` in ms."""

    device: str
    model: str
    what: str
    value: float
    source: str


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """A measured language model that is none of `VARIANTS`."""

    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    mlp_width: int
    head_size: int = 128
    vocab_size: int = 151936

    def work(self) -> Work:
        """Return its work: INT4 weights, an fp16 head."""
        query, kv = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        layers = self.num_layers * self.width * (2 * query + 2 * kv + 3 * self.mlp_width)
        num_bytes = layers * INT4_BITS / 8 + 2 * self.vocab_size * self.width
        return Work(self.num_layers, num_bytes, 4.0 * self.num_layers * kv, 2.0 * layers)


NVILA = VARIANTS["NVILA-Lite-8B"].spec
WORKS = {
    "Qwen3-VL-2B": DecoderShape(28, 2048, 16, 8, 6144).work(),
    "Qwen3-VL-4B": DecoderShape(36, 2560, 32, 8, 9728).work(),
    "Qwen3-VL-8B": DecoderShape(36, 4096, 32, 8, 12288).work(),
    "NVILA-8B": work_of(NVILA, QUANTIZED, QUANTIZED),
    "SigLIP fp16": work_of(NVILA, "fp16", "fp16"),
    "SigLIP W8A8": work_of(NVILA, QUANTIZED, "fp16"),
}
EDGE, FIGURE, TINYCHAT = "Edge-LLM 0.9.0", "NVILA figure 6", "TinyChat"
ROWS = [
    *(
        PublishedFigure(device, model, what, value, EDGE)
        for what, values in {
            "decode": {
                ("orin-nano", "Qwen3-VL-2B"): 36.9,
                ("orin-nx", "Qwen3-VL-2B"): 60.1,
                ("orin-nx", "Qwen3-VL-4B"): 31.2,
                ("orin-nx", "Qwen3-VL-8B"): 18.9,
                ("agx-orin", "Qwen3-VL-2B"): 98.4,
                ("agx-orin", "Qwen3-VL-4B"): 52.4,
                ("agx-orin", "Qwen3-VL-8B"): 32.3,
                ("thor", "Qwen3-VL-4B"): 79.0,
                ("thor", "Qwen3-VL-8B"): 48.9,
            },
            "prefill": {
                ("orin-nano", "Qwen3-VL-2B"): 190.9,
                ("orin-nx", "Qwen3-VL-2B"): 103.1,
                ("orin-nx", "Qwen3-VL-4B"): 244.6,
                ("orin-nx", "Qwen3-VL-8B"): 462.1,
                ("agx-orin", "Qwen3-VL-2B"): 50.0,
                ("agx-orin", "Qwen3-VL-4B"): 123.7,
                ("agx-orin", "Qwen3-VL-8B"): 225.1,
            },
        }.items()
        for (device, model), value in values.items()
    ),
    # One image, and one frame of a clip of 64.
    PublishedFigure("rtx-4090", "SigLIP fp16", "vision", 14.0, FIGURE),
    PublishedFigure("rtx-4090", "SigLIP fp16", "vision", 630 / 64, FIGURE),
    PublishedFigure("rtx-4090", "SigLIP W8A8", "vision", 10.3, FIGURE),
    PublishedFigure("rtx-4090", "SigLIP W8A8", "vision", 515 / 64, FIGURE),
    PublishedFigure("agx-orin", "NVILA-8B", "decode", 28.1, TINYCHAT),
    PublishedFigure("rtx-4090", "NVILA-8B", "decode", 162.7, TINYCHAT),
    PublishedFigure("a100", "NVILA-8B", "decode", 186.8, TINYCHAT),
]


def predict(figure: PublishedFigure, shares: Shares) -> float:
    """Return what the roofline predicts for a figure, in its unit."""
    work, device = WORKS[figure.model], DEVICES[figure.device]
    if figure.what == "decode":
        return 1 / step_s(work, device, POSITIONS, shares)
    seconds = (
        vision_s(work, device, 1, shares) if figure.what == "vision" else prefill_s(work, device, POSITIONS, shares)
    )
    return 1e3 * seconds
