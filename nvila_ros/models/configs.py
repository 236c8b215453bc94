"""Translate upstream's configs, in every published layout, to a `ModelSpec`.

A value under which a checkpoint would load but answer differently than it was trained to is refused by name. Keys that
only training reads are ignored: a published config may have 226 kB of them. Defaults are those of the classes that
upstream loads a config into. A Llama decoder means VILA 1.5, from which NVILA grew and whose relatives are NaVILA and
VILA-M3; its config does not say what else differs. Source: the configs published with NVLabs/VILA; transformers'
Qwen2Config, LlamaConfig and SiglipVisionConfig.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from nvila_ros.errors import CheckpointError, shown
from nvila_ros.models.foreign import check_foreign, check_gaze, check_tensors
from nvila_ros.models.spec import (
    DOWNSAMPLE_BY_PROJECTOR,
    NO_POOL,
    VIDEO_MODES,
    DecoderSpec,
    ModelSpec,
    Pool,
    ProjectorSpec,
    VisionSpec,
    Wrap,
)
from nvila_ros.models.spec_bounds import MAX_POOLS, MAX_SCALES, SIZES, check_most, check_pool

Config = Mapping[str, Any]
ENCODERS = {"image_encoder": ("BasicImageEncoder",), "video_encoder": ("BasicVideoEncoder", "TSPVideoEncoder")}
"""Known kinds by the key that names one; the first is the default."""
ENCODER_KEYS = ("_target_", "start_tokens", "end_tokens", "sep_tokens")


class DecoderDefaults(NamedTuple):
    """What transformers takes where a decoder's config says nothing; None are as many kv heads as heads."""

    vocab_size: int
    num_kv_heads: int | None
    max_positions: int


DECODERS = {"qwen2": DecoderDefaults(151936, 32, 32768), "llama": DecoderDefaults(32000, None, 2048)}
"""Known kinds of language models."""


def read_spec(name: str, top: Config, *, vision: Config, llm: Config, projector: Config) -> ModelSpec:
    """Return the spec that a checkpoint's configs describe.

    Raises:
        CheckpointError: a key is missing, or a value lies outside the family; known kinds are listed.
    """
    with _naming(name):
        check_foreign(top, vision, llm)
        vision_spec = _vision_spec(vision, top.get("mm_vision_select_layer", -2))
        scales = _scales(top)
        image_wrap, _ = _encoder(top, "image_encoder")
        video_wrap, video_pools = _encoder(top, "video_encoder")
        _check_top(top)
        is_vila15 = llm.get("model_type") == "llama"
        if is_vila15:
            _check_vila15(top, projector)
            image_wrap = video_wrap = Wrap(end="")
        return ModelSpec(
            name=name,
            vision=vision_spec,
            projector=ProjectorSpec(
                kind=_projector_kind(projector["mm_projector_type"]),
                in_width=_get(top, "mm_hidden_size", vision_spec.width * max(len(scales), 1)),
                out_width=llm["hidden_size"],
                is_column_major=is_vila15,
            ),
            decoder=_decoder_spec(llm),
            image_mode="dynamic_s2" if scales else top.get("image_aspect_ratio") or "resize",
            num_video_frames=_get(top, "num_video_frames", 8),
            dtype=str(top.get("model_dtype") or llm.get("torch_dtype") or "bfloat16").removeprefix("torch."),
            min_tiles=_get(top, "min_tiles", 1),
            max_tiles=_get(top, "max_tiles", 12),
            scales=scales,
            merge_scale=top.get("s2_resize_output_to_scale_idx", 0),
            image_wrap=image_wrap,
            video_wrap=video_wrap,
            video_pools=video_pools,
            has_text_newlines=is_vila15,
            video_mode=VIDEO_MODES[is_vila15],
        )


def complete_flat(name: str, top: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the config of a flat checkpoint, completed by values that its published code has and the config lacks.

    The projector's kind and input are read from its tensors, and with them the row of the published family: features
    of several scales mean Dynamic-S2 at 1, 2, 3 ... times the tile, 3x3 means NVILA-Lite with dynamic tiling, 2x2 on
    one scale means NVILA-8B-Video. Values of the config take precedence.

    Args:
        name: of the checkpoint, for errors.
        top: `config.json` with `text_config` and `vision_config`.
        shapes: of the checkpoint's tensors, by `part.key`.

    Raises:
        CheckpointError: the projector is of no known kind, or a key is missing.
    """
    with _naming(name):
        check_foreign(top, top["vision_config"], top["text_config"])
        check_tensors(shapes)
        return _guess_flat(top, shapes) | dict(top)


def _guess_flat(top: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    layers = {int(k.split(".")[2]) for k in shapes if k.startswith("mm_projector.layers.") and k.endswith(".weight")}
    kind = {(1, 2, 4): "mlp_downsample", (1, 2, 4, 5, 7): "mlp_downsample_3x3_fix"}.get(tuple(sorted(layers)))
    if kind is None:
        raise CheckpointError(
            f"a projector with weights in layers {sorted(layers)} is of no known kind; "
            f"known are {sorted(DOWNSAMPLE_BY_PROJECTOR)}"
        )
    in_width = shapes["mm_projector.layers.1.weight"][0] // DOWNSAMPLE_BY_PROJECTOR[kind] ** 2
    vision = top["vision_config"]
    num_scales = in_width // vision["hidden_size"]
    guess: dict[str, Any] = {"mm_hidden_size": in_width, "mm_projector_cfg": {"mm_projector_type": kind}}
    if num_scales > 1:
        scales = [str(vision["image_size"] * k) for k in range(1, num_scales + 1)]
        guess |= {"dynamic_s2": True, "image_aspect_ratio": "dynamic_s2", "s2_scales": ",".join(scales)}
        guess |= {"s2_resize_output_to_scale_idx": -1}
    elif kind == "mlp_downsample_3x3_fix":
        guess |= {"image_aspect_ratio": "dynamic"}
    else:
        guess |= {"image_aspect_ratio": "resize", "num_video_frames": 256}
        guess |= {"video_encoder": {"_target_": "TSPVideoEncoder", "pool_sizes": [[8, 1, 1]]}}
    return guess


def _vision_spec(config: Config, select_layer: int) -> VisionSpec:
    _only(config, "model_type", "siglip_vision_model")
    _only(config, "hidden_act", "gelu_pytorch_tanh")
    _only(config, "num_channels", 3)
    num_layers = config["num_hidden_layers"]
    # hidden_states begins with the embeddings, so entry -2 is the output of the last layer but one.
    is_whole = type(select_layer) is int and type(num_layers) is int
    num_live = num_layers + 1 + select_layer if is_whole and select_layer < 0 else select_layer
    if not is_whole or not 0 <= num_live <= num_layers:
        raise CheckpointError(
            f"mm_vision_select_layer must name one of {shown(num_layers)} layers, got {shown(select_layer)}"
        )
    return VisionSpec(
        width=config["hidden_size"],
        num_layers=num_layers,
        num_heads=config["num_attention_heads"],
        mlp_width=config["intermediate_size"],
        image_px=config.get("image_size", 224),
        patch_px=config.get("patch_size", 16),
        num_live_layers=num_live,
        norm_eps=config.get("layer_norm_eps", 1e-6),
    )


def _decoder_spec(config: Config) -> DecoderSpec:
    kind = config.get("model_type")
    if kind not in DECODERS:
        raise CheckpointError(f"the language model must be of type qwen2 or llama, got {shown(kind)}")
    preset = DECODERS[kind]
    rope = config.get("rope_parameters") or {}
    for stretched in (config.get("rope_scaling"), rope):
        if stretched and stretched.get("rope_type", stretched.get("type", "default")) != "default":
            raise CheckpointError(f"rotary positions must not be scaled, got {shown(stretched)}")
    _only(config, "hidden_act", "silu")
    for key in ("use_sliding_window", "attention_bias", "mlp_bias"):
        _only(config, key, False)
    num_heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", preset.num_kv_heads)
    positions = config.get("max_position_embeddings", preset.max_positions)
    if kind == "llama":  # upstream cuts the end off of what is longer than it was trained on
        positions = min(positions, _get(config, "tokenizer_model_max_length", positions))
    spec = DecoderSpec(
        width=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=num_heads if kv_heads is None else kv_heads,
        mlp_width=config["intermediate_size"],
        vocab_size=config.get("vocab_size", preset.vocab_size),
        rope_theta=_get(config, "rope_theta", rope.get("rope_theta", 1e4)),
        is_tied=_flag(config, "tie_word_embeddings"),
        max_positions=positions,
        norm_eps=config.get("rms_norm_eps", 1e-6),
        has_bias=kind == "qwen2",
    )
    _only(config, "head_dim", spec.head_size)
    return spec


def _projector_kind(kind: str) -> str:
    if kind not in DOWNSAMPLE_BY_PROJECTOR:
        raise CheckpointError(f"unknown projector kind {shown(kind)}; known are {sorted(DOWNSAMPLE_BY_PROJECTOR)}")
    return kind


def _scales(top: Config) -> tuple[int, ...]:
    mode, is_scaled = top.get("image_aspect_ratio"), _flag(top, "dynamic_s2")
    if is_scaled != (mode == "dynamic_s2"):
        raise CheckpointError(f"dynamic_s2 and image_aspect_ratio must agree, got {is_scaled} and {shown(mode)}")
    if not is_scaled:
        return ()
    scales = top["s2_scales"]
    listed = scales.split(",", MAX_SCALES) if isinstance(scales, str) else scales
    check_most("number of s2_scales", len(listed), MAX_SCALES)
    return tuple(sorted(int(scale) for scale in listed))


def _encoder(top: Config, key: str) -> tuple[Wrap, tuple[Pool, ...]]:
    """Return the text that an encoder puts around tokens, and its pooling levels; upstream has JSON in a string."""
    value = top.get(key) or {}
    if isinstance(value, str):
        value = json.loads(value) if value.lstrip().startswith("{") else {"_target_": value}
    known = ENCODERS[key]
    kind = value.get("_target_", known[0]).rsplit(".", 1)[-1]
    if kind not in known:
        raise CheckpointError(f"unknown {key} {shown(kind)}; known are {list(known)}")
    known_keys = ENCODER_KEYS + (("pool_sizes",) if kind == "TSPVideoEncoder" else ())
    unknown = sorted(name for name, argument in value.items() if argument and name not in known_keys)
    if unknown:
        raise CheckpointError(
            f"the {key} has the arguments {unknown}, which are not computed here, so its tokens would be others than "
            f"the model was trained on; known are {list(known_keys)}"
        )
    for name in ("start_tokens", "end_tokens", "sep_tokens"):
        if not isinstance(value.get(name), str | None):
            raise CheckpointError(f"{name} of the {key} must be a text, got {shown(value[name])}")
    wrap = Wrap(
        start=value.get("start_tokens") or "",
        end=value.get("end_tokens", "\n") or "",
        sep=value.get("sep_tokens") or "",
    )
    pools = value["pool_sizes"] if kind == "TSPVideoEncoder" else [NO_POOL]
    check_most(f"number of pool_sizes of the {key}", len(pools), MAX_POOLS)
    for pool in pools:
        check_pool(pool, SIZES["num_video_frames"].most)
    return wrap, tuple((pool[0], pool[1], pool[2]) for pool in pools)


def _check_top(top: Config) -> None:
    """Refuse features of older models of upstream's family that NVILA does not have."""
    _only(top, "mm_vision_select_feature", "cls_patch")
    _only(top, "mm_use_im_start_end", False)
    _only(top, "video_max_tiles", 1)
    _only(top, "vision_resolution", -1)
    if _flag(top, "s2") and not _flag(top, "dynamic_s2"):
        raise CheckpointError("s2 at fixed scales is not NVILA's; known are dynamic_s2, dynamic and resize")


def _check_vila15(top: Config, projector: Config) -> None:
    """Refuse a Llama in any frame but VILA 1.5's: which order its tokens come in, and what follows them, is unknown."""
    _only(projector, "mm_projector_type", "mlp_downsample")
    _only(top, "image_aspect_ratio", "resize")
    odd = [key for key in ("image_encoder", "video_encoder", "text_config") if top.get(key)]
    if odd:
        raise CheckpointError(
            f"a Llama decoder is known in VILA 1.5's layout alone, which has no {odd}; NVILA's decoder is a Qwen2"
        )


def _get(config: Config, key: str, default: Any) -> Any:
    """Return a value; null is the default, as upstream reads it, and 0 is not."""
    value = config.get(key)
    return default if value is None else value


def _only(config: Config, key: str, known: Any) -> None:
    if config.get(key) not in (None, known):
        raise CheckpointError(f"{key} must be {known!r}, got {shown(config[key])}: no other is known")


def _flag(config: Config, key: str) -> bool:
    value = config.get(key)
    if value not in (None, True, False) or (isinstance(value, int) and not isinstance(value, bool)):
        raise CheckpointError(f"{key} must be true or false, got {shown(value)}")
    return bool(value)


def check_preprocessor(config: Config, image_px: int) -> None:
    """Refuse an image processor that prepares pixels differently than this project does.

    Args:
        config: `preprocessor_config.json` of the tower.
        image_px: the tower's side.

    Raises:
        CheckpointError: a value that reaches the pixels differs.
    """
    with _naming("the image processor"):
        check_gaze(config)
        size = config.get("size")
        _only(config, "resample", 3)
        for key in ("do_resize", "do_rescale", "do_normalize"):
            _only(config, key, True)
        if not math.isclose(config.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
            raise CheckpointError(
                f"rescale_factor of the image processor must be 1/255, got {shown(config['rescale_factor'])}"
            )
        for key in ("image_mean", "image_std"):
            _only(config, key, [0.5, 0.5, 0.5])
        if isinstance(size, dict) and set(size.values()) != {image_px}:
            raise CheckpointError(f"size of the image processor must be {image_px}, the tower's, got {shown(size)}")


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turn a missing key or a value of the wrong type into an error of the checkpoint."""
    try:
        yield
    except CheckpointError:
        raise
    except KeyError as error:
        raise CheckpointError(f"the configs of {name} lack the key {error}; copy them anew") from error
    except RecursionError as error:
        raise CheckpointError(
            f"the configs of {name} hold a value that is nested too deeply; copy them anew"
        ) from error
    except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise CheckpointError(f"the configs of {name} hold a value of the wrong type: {error}") from error
