"""What a robot would do with transformers: read frames and prompt anew for every question.

A so400m tower over each frame, two linear maps, a Qwen2 of the shapes asked for over visual tokens and a short
question, and the first token of its answer. Random weights, bf16 or fp32, whichever is faster. Prints the seconds of
one question.

    .venv/bin/python -m benchmarks.stream_peer 8 24 26
"""

from __future__ import annotations

import os
import sys
import time

os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

TOKENS_PER_FRAME = 121
NUM_TEXT = 40
ROUNDS = 2


@torch.inference_mode()
def main() -> int:
    """Time one question; returns the exit code."""
    num_frames, num_layers, num_tower_layers = map(int, sys.argv[1:])
    torch.set_num_threads(os.cpu_count() or 1)
    print(
        min(time_question(dtype, num_frames, num_layers, num_tower_layers) for dtype in (torch.bfloat16, torch.float32))
    )
    return 0


def time_question(dtype: torch.dtype, num_frames: int, num_layers: int, num_tower_layers: int) -> float:
    """Return the seconds of the fastest round."""
    torch.set_default_dtype(dtype)
    vision = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=num_tower_layers,
        num_attention_heads=16,
        image_size=448,
        patch_size=14,
        vision_use_head=False,
    )
    text = Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=num_layers,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=True,
    )
    tower, llm = SiglipVisionModel(vision).eval(), Qwen2ForCausalLM(text).eval()
    projector = nn.Sequential(nn.Linear(9 * 1152, 3 * 1152), nn.GELU(), nn.Linear(3 * 1152, 896))
    frames = torch.randn(num_frames, 3, 448, 448)
    words = torch.randint(0, 1000, (1, NUM_TEXT))
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        features = torch.cat([tower(frame[None]).last_hidden_state for frame in frames])
        merged = features[:, : TOKENS_PER_FRAME * 8].reshape(num_frames, TOKENS_PER_FRAME, -1)
        merged = nn.functional.pad(merged, (0, 9 * 1152 - merged.shape[-1]))  # the cost of 3 x 3 patches
        visual = projector(merged).reshape(1, -1, 896)
        embeds = torch.cat([visual, llm.get_input_embeddings()(words)], dim=1)
        llm(inputs_embeds=embeds, logits_to_keep=1).logits.argmax()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    sys.exit(main())
