"""nvila-tiny: its sizes and its tokenizer.

The sizes suit the engines: the decoder's widths are multiples of 128 (INT4 groups), kv heads x head size is 128
(TensorRT binds at 256-byte steps), head sizes 32 and 64 fuse, the vocabulary is even.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from nvila_ros.models.nvila import Nvila
from nvila_ros.models.spec import DecoderSpec, ModelSpec, ProjectorSpec, VisionSpec
from nvila_ros.prompt.byte_pairs import QWEN2_WORDS
from nvila_ros.prompt.template import SYSTEM
from nvila_ros.training.save import write_json
from nvila_ros.world.questions import all_texts

VOCAB_SIZE = 480
ADDED_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "[BOS]", "[PAD]")
SPEC = ModelSpec(
    name="nvila-tiny",
    vision=VisionSpec(
        width=128, num_layers=6, num_heads=4, mlp_width=512, image_px=112, patch_px=14, num_live_layers=5
    ),
    projector=ProjectorSpec(kind="mlp_downsample", in_width=128, out_width=256),
    decoder=DecoderSpec(
        width=256,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        mlp_width=512,
        vocab_size=VOCAB_SIZE,
        rope_theta=10000.0,
        is_tied=True,
        max_positions=2048,
    ),
    image_mode="resize",
    merge_scale=0,  # upstream's default: without scales it says nothing, and the files do not hold it
    num_video_frames=8,
    dtype="bfloat16",
)


def new_model(seed: int) -> Nvila:
    """Return an untrained nvila-tiny, the same for the same seed."""
    torch.manual_seed(seed)
    model = Nvila(SPEC)
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):  # torch's unit deviation would make the tied head far too sure
            torch.nn.init.normal_(module.weight, std=0.02)
    return model


def write_tokenizer(folder: Path) -> None:
    """Train the byte-level BPE on every text of the world and write it as Qwen2's slow tokenizer does."""
    num_merged = VOCAB_SIZE - len(ADDED_TOKENS)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=num_merged, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    frame = [f"system\n{SYSTEM}", "user\n", "assistant\n"] * 100
    tokenizer.train_from_iterator([*frame, *all_texts(), *(f" {text}" for text in all_texts())], trainer)
    parsed = json.loads(tokenizer.to_str())["model"]
    assert len(parsed["vocab"]) == num_merged, f"corpus gives {len(parsed['vocab'])} of {num_merged} tokens"
    folder.mkdir(parents=True, exist_ok=True)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in parsed["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    write_json(folder / "vocab.json", parsed["vocab"])
    # The media tokens lie beyond the table, as in NVILA-8B.
    write_json(folder / "added_tokens.json", {name: num_merged + i for i, name in enumerate(ADDED_TOKENS)})
