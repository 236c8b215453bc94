"""The specs of published models, from their names and the language models that they grew from.

Sources: as in `variants.py`. VILA 1.5's decoders by the shapes of Llama-3-8B, Sheared-LLaMA-2.7B and Vicuna-13B.
"""

from __future__ import annotations

from nvila_ros.models.spec import NO_POOL, VIDEO_MODES, DecoderSpec, ModelSpec, ProjectorSpec, VisionSpec, Wrap

# Rows of the embedding table: 151,643 of plain text, the tokenizer's own specials (3 and 22), [BOS] and [PAD].
_QWEN2_VOCAB, _QWEN25_VOCAB = 151648, 151667
_LLAMA3_VOCAB = 128257  # 128,000 of plain text, 256 specials, [PAD]


def _tower(image_px: int) -> VisionSpec:
    """Return SigLIP so400m, whose last layer reaches no answer."""
    return VisionSpec(
        width=1152, num_layers=27, num_heads=16, mlp_width=4304, image_px=image_px, patch_px=14, num_live_layers=26
    )


def _qwen(width: int, num_layers: int, num_heads: int, num_kv_heads: int, mlp_width: int, vocab: int) -> DecoderSpec:
    return DecoderSpec(
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        mlp_width=mlp_width,
        vocab_size=vocab,
        rope_theta=1e6,
        is_tied=width < 2048,  # only the smallest shares its embeddings with the head
        max_positions=32768,
    )


def _llama(width: int, num_layers: int, num_heads: int, num_kv_heads: int, mlp_width: int, vocab: int) -> DecoderSpec:
    return DecoderSpec(
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        mlp_width=mlp_width,
        vocab_size=vocab,
        rope_theta=5e5 if vocab == _LLAMA3_VOCAB else 1e4,
        is_tied=False,
        max_positions=4096,  # of the training, not of the language model
        norm_eps=1e-5,
        has_bias=False,
    )


DECODERS = {
    "Qwen2.5-1.5B": _qwen(1536, 28, 12, 2, 8960, _QWEN25_VOCAB),
    "Qwen2.5-7B": _qwen(3584, 28, 28, 4, 18944, _QWEN2_VOCAB),
    "Qwen2-7B": _qwen(3584, 28, 28, 4, 18944, _QWEN2_VOCAB),
    "Qwen2.5-14B": _qwen(5120, 48, 40, 8, 13824, _QWEN25_VOCAB),
    "Llama-3-8B": _llama(4096, 32, 32, 8, 14336, _LLAMA3_VOCAB),
    "Sheared-LLaMA-2.7B": _llama(2560, 32, 20, 20, 6912, 32000),
    "Vicuna-13B": _llama(5120, 40, 40, 40, 13824, 32000),
}
"""Shapes by the language model's name."""


def nvila_spec(name: str, language_model: str) -> ModelSpec:
    """Return the spec of an NVILA; its name gives its projector, tiling and pooling."""
    is_lite, is_video = "-Lite-" in name, name.endswith("-Video")
    scales = () if is_lite or is_video else (448, 896, 1344)
    vision, decoder = _tower(448), DECODERS[language_model]
    return ModelSpec(
        name=name,
        vision=vision,
        projector=ProjectorSpec(
            kind="mlp_downsample_3x3_fix" if is_lite else "mlp_downsample" if scales else "mlp_downsample_2x2_fix",
            in_width=vision.width * max(len(scales), 1),
            out_width=decoder.width,
        ),
        decoder=decoder,
        image_mode="resize" if is_video else "dynamic" if is_lite else "dynamic_s2",
        num_video_frames=256 if is_video else 8,
        dtype="bfloat16",
        scales=scales,
        video_pools=((8, 1, 1),) if is_video else (NO_POOL,),
    )


def vila15_spec(name: str, language_model: str) -> ModelSpec:
    """Return the spec of a VILA 1.5 or of one that was tuned from it."""
    vision, decoder = _tower(384), DECODERS[language_model]
    return ModelSpec(
        name=name,
        vision=vision,
        projector=ProjectorSpec(
            kind="mlp_downsample", in_width=vision.width, out_width=decoder.width, is_column_major=True
        ),
        decoder=decoder,
        image_mode="resize",
        num_video_frames=8,
        dtype="bfloat16",
        video_mode=VIDEO_MODES[1],
        image_wrap=Wrap(end=""),
        video_wrap=Wrap(end=""),
        has_text_newlines=True,
    )
