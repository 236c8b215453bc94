"""The published family as data, and the size of any model: parameters, bytes, prompt positions.

Only a `ModelSpec` is needed, so a robot's memory can be planned before a checkpoint is downloaded. Variants that were
not read from a published config say in `inferred` what their values are based on. Sources: NVILA (arXiv 2412.04468);
the configs, training scripts and file sizes published with NVLabs/VILA; the shapes of Qwen2 and Qwen2.5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from nvila_ros.models.published_specs import nvila_spec, vila15_spec
from nvila_ros.models.shapes import HEAD, Shapes, expected_shapes
from nvila_ros.models.spec import NO_POOL, ModelSpec, Wrap

PRECISIONS = ("fp32", "fp16", "w8a8+w4a16")
"""Precisions of weights; `weight_bytes` defines each."""
GROUP_SIZE = 128
"""Input channels that share a scale and a zero point in W4A16."""
QUESTION_TOKENS = 64
"""Prompt positions of a short question and the chat's frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One model of the family.

    Attributes:
        language_model: whose shape the decoder has.
        repos: published repositories with these dimensions, as owner/name.
        note: what sets it apart.
        inferred: what was not read from its published configs, and what it is based on instead; empty if all was.
    """

    name: str
    spec: ModelSpec
    language_model: str
    repos: tuple[str, ...]
    note: str
    inferred: str


@dataclass(frozen=True, slots=True)
class Parameters:
    """Number of parameters of a part.

    Attributes:
        live: those that reach an answer.
        dead: those that are only in the file: the tower's layers behind the features, and its last norm.
    """

    live: int
    dead: int

    @property
    def in_file(self) -> int:
        """All of them."""
        return self.live + self.dead


@dataclass(frozen=True, slots=True)
class MediaCost:
    """The cost of an image or a clip.

    Attributes:
        num_tiles: runs of the vision tower.
        num_visual: visual tokens that the language model reads.
        num_positions: prompt positions, which are the visual tokens and the newlines around them.
    """

    num_tiles: int
    num_visual: int
    num_positions: int


def count_parameters(spec: ModelSpec) -> dict[str, Parameters]:
    """Return the number of parameters of each part, by upstream's name of it; a tied head counts once."""
    live, dead = _sum_by_part(_sizes(expected_shapes(spec))), _sum_by_part(_sizes(dead_shapes(spec)))
    return {part: Parameters(live[part], dead.get(part, 0)) for part in live}


def dead_shapes(spec: ModelSpec) -> Shapes:
    """Return the shapes of tensors in published files that no answer needs, by `part.key`; VILA 1.5 has a head more."""
    whole = expected_shapes(replace(spec, vision=replace(spec.vision, num_live_layers=spec.vision.num_layers)))
    live = expected_shapes(spec)
    stem, e, h = "vision_tower.vision_model", spec.vision.width, spec.vision.mlp_width
    shapes = {key: shape for key, shape in whole.items() if key not in live}
    shapes |= {f"{stem}.post_layernorm.{key}": (e,) for key in ("weight", "bias")}
    if not spec.has_text_newlines:
        return shapes
    head = {"probe": (1, 1, e), "attention.in_proj_weight": (3 * e, e), "attention.in_proj_bias": (3 * e,)}
    head |= {"attention.out_proj.weight": (e, e), "attention.out_proj.bias": (e,)}
    head |= {"layernorm.weight": (e,), "layernorm.bias": (e,)}
    head |= {"mlp.fc1.weight": (h, e), "mlp.fc1.bias": (h,), "mlp.fc2.weight": (e, h), "mlp.fc2.bias": (e,)}
    return shapes | {f"{stem}.head.{key}": shape for key, shape in head.items()}


def weight_bytes(
    spec: ModelSpec, precision: str, *, group_size: int = GROUP_SIZE, is_head_int4: bool = False
) -> dict[str, int]:
    """Return the bytes of each part's live weights, by upstream's name of the part.

    - `fp32`: four bytes a parameter; `fp16`: two, as in bf16.
    - `w8a8+w4a16`: the tower's linear weights in int8 with one fp16 scale for each output channel (scales of
      activations are found at run time); the decoder's q, k, v, o, gate, up and down weights in int4 with one fp16
      scale and one fp16 zero point for each output channel and group of input channels. All else is fp16: biases,
      norms, the tower's embeddings, the projector, token embeddings and head. Padding of packed files is not counted.

    Args:
        spec: the model.
        precision: one of `PRECISIONS`.
        group_size: input channels of a group.
        is_head_int4: the head is in int4 as well, of a tied table beside the embeddings.
    """
    shapes = expected_shapes(spec)
    if precision == "w8a8+w4a16":
        if is_head_int4:
            shapes = {**shapes, HEAD: (spec.decoder.vocab_size, spec.decoder.width)}
        int4 = {
            key for key, shape in shapes.items() if key.startswith("llm.") and ".layers." in key and len(shape) == 2
        }
        int4 |= {HEAD} if is_head_int4 else set()
        sizes = {
            key: _int4_bytes(shape, group_size) if key in int4 else _int8_bytes(key, shape)
            for key, shape in shapes.items()
        }
        return _sum_by_part(sizes)
    size = {"fp32": 4, "fp16": 2}[precision]
    return _sum_by_part({key: size * math.prod(shape) for key, shape in shapes.items()})


def kv_bytes(spec: ModelSpec, num_positions: int, value_bytes: int = 2) -> int:
    """Return the bytes of the KV cache over `num_positions`, in fp16 by default."""
    decoder = spec.decoder
    return 2 * decoder.num_layers * decoder.num_kv_heads * decoder.head_size * value_bytes * num_positions


def tile_range(spec: ModelSpec) -> tuple[int, int]:
    """Return the fewest and most tiles of the grid that follows a single image's aspect.

    Neither a thumbnail nor the smaller scales of Dynamic-S2 are counted.
    """
    if spec.image_mode == "resize":
        return 1, 1
    return (_num_squares(spec, -1) if spec.scales else spec.min_tiles), spec.max_tiles


def image_cost(spec: ModelSpec, grid_tiles: int) -> MediaCost:
    """Return the cost of a single image.

    Args:
        spec: the model; a text of its wraps counts as one token, which the published newline is.
        grid_tiles: tiles of the grid that follows the image's aspect, within `tile_range`.
    """
    around = _num_tokens(spec.image_wrap.start, spec.image_wrap.end) + spec.has_text_newlines
    if spec.image_mode == "resize":
        return MediaCost(1, spec.tokens_per_tile, spec.tokens_per_tile + around)
    if spec.image_mode == "dynamic":
        num_tiles = grid_tiles + (grid_tiles > 1)  # the thumbnail
        num_visual = num_tiles * spec.tokens_per_tile
        # The prompt has a text newline behind each tile besides what the encoder puts there.
        return MediaCost(num_tiles, num_visual, num_visual + num_tiles * (around + 1))
    is_last = spec.merge_scale in (-1, len(spec.scales) - 1)
    num_visual = spec.tokens_per_tile * (grid_tiles if is_last else _num_squares(spec, spec.merge_scale))
    num_tiles = grid_tiles + sum(_num_squares(spec, i) for i in range(len(spec.scales) - 1))
    return MediaCost(num_tiles, num_visual, num_visual + around)


def clip_cost(spec: ModelSpec, num_frames: int) -> MediaCost:
    """Return the cost of a clip.

    Args:
        spec: the model; a text of its wraps counts as one token, which the published newline is.
        num_frames: a multiple of `spec.frames_per_group`.
    """
    as_video = spec.video_mode == "video"
    wrap: Wrap = spec.video_wrap if as_video else spec.image_wrap
    num_visual = num_positions = 0
    for frames, rows, columns in spec.video_pools if as_video else (NO_POOL,):
        num_groups = num_frames // frames
        level = num_groups * spec.tokens_per_tile // (rows * columns)
        num_visual += level
        around = _num_tokens(wrap.start, wrap.end) + (spec.has_text_newlines and not as_video)
        num_positions += level + num_groups * around + _num_tokens(wrap.sep) * as_video
    return MediaCost(num_frames, num_visual, num_positions)


def nearest_variant(spec: ModelSpec) -> Variant | None:
    """Return the variant with the same dimensions and kinds, or None.

    Vocabulary, positions and number of frames are not compared, since fine-tuned copies change them. Of several, which
    differ in their weights alone, it is the one of that name.
    """
    alike = [variant for variant in VARIANTS.values() if _identity(variant.spec) == _identity(spec)]
    named = [each for each in alike if spec.name in (each.name, *(repo.rpartition("/")[2] for repo in each.repos))]
    return next(iter(named or alike), None)


def _identity(spec: ModelSpec) -> tuple[object, ...]:
    # Kinds of projector with the same factor compute the same.
    projector = (spec.projector.downsample, spec.projector.in_width, spec.projector.out_width)
    decoder = replace(spec.decoder, vocab_size=1, max_positions=1)
    return spec.vision, projector, decoder, spec.image_mode, spec.scales, spec.video_pools


def _num_squares(spec: ModelSpec, scale_idx: int) -> int:
    """Return the tiles of a scale shown as a square."""
    return (spec.scales[scale_idx] // spec.vision.image_px) ** 2


def _num_tokens(*texts: str) -> int:
    return sum(bool(text) for text in texts)


def _sizes(shapes: Shapes) -> dict[str, int]:
    return {key: math.prod(shape) for key, shape in shapes.items()}


def _sum_by_part(values: Mapping[str, int]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for key, value in values.items():
        part = key.partition(".")[0]
        sums[part] = sums.get(part, 0) + value
    return sums


def _int4_bytes(shape: tuple[int, ...], group_size: int) -> int:
    return shape[0] * (math.ceil(shape[1] / 2) + 4 * math.ceil(shape[1] / group_size))


def _int8_bytes(key: str, shape: tuple[int, ...]) -> int:
    is_linear = key.startswith("vision_tower.") and ".layers." in key and len(shape) == 2
    return shape[0] * (shape[1] + 2) if is_linear else 2 * math.prod(shape)


_OWNER = "Efficient-Large-Model"


def _variant(name: str, language_model: str, *, repos: tuple[str, ...] = (), note: str, inferred: str) -> Variant:
    names = tuple(f"{_OWNER}/{name}{suffix}" for suffix in ("", *repos))
    spec = nvila_spec(name, language_model)
    return Variant(name=name, spec=spec, language_model=language_model, repos=names, note=note, inferred=inferred)


def _vila15(name: str, language_model: str, *, repos: tuple[str, ...], note: str) -> Variant:
    spec = vila15_spec(name, language_model)
    return Variant(name=name, spec=spec, language_model=language_model, repos=repos, note=note, inferred=_FROM_CODE)


_FROM_CODE = "all from the training and evaluation code, the language model's shape from the one it grew from"
_FROM_SIZES = "the tower and {} from the sizes of the published files, the modes from the training scripts"
VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        _variant(
            "NVILA-8B",
            "Qwen2.5-7B",
            repos=("-hf",),
            note="a single image is seen at three scales (Dynamic-S2): better at small print than Lite",
            inferred="which language model it grew from: Qwen2.5-7B by the training script, of whose shape it is, but "
            "its vocabulary is Qwen2's",
        ),
        _variant(
            "NVILA-15B",
            "Qwen2.5-14B",
            repos=("-hf",),
            note="as NVILA-8B with a larger language model",
            inferred=_FROM_SIZES.format("projector") + "; the language model from Qwen2.5-14B, its vocabulary unseen",
        ),
        _variant(
            "NVILA-Lite-2B",
            "Qwen2.5-1.5B",
            repos=("-hf-preview", "-hf-0626", "-hf", "-Verifier"),
            note="the smallest; token embeddings and head are one table",
            inferred=_FROM_SIZES.format("projector") + "; the language model from Qwen2.5-1.5B, its vocabulary unseen",
        ),
        _variant(
            "NVILA-Lite-8B",
            "Qwen2-7B",
            repos=("-stage2", "-hf-preview", "-hf-0626"),
            note="tiles of 121 tokens, as many as the image's aspect asks for: half the tokens of NVILA-8B",
            inferred=_FROM_SIZES.format("language model"),
        ),
        _variant(
            "NVILA-Lite-15B",
            "Qwen2.5-14B",
            repos=("-stage2", "-hf-0626"),
            note="as NVILA-Lite-8B with a larger language model",
            inferred=_FROM_SIZES.format("projector") + "; the language model from Qwen2.5-14B, its vocabulary unseen",
        ),
        _variant(
            "NVILA-8B-Video",
            "Qwen2-7B",
            note="long clips: 256 frames, eight of which are averaged into one",
            inferred="all but the tower from the training script of its last stage; its vocabulary unseen",
        ),
        _variant(
            "NVILA-Lite-15B-Video",
            "Qwen2.5-14B",
            repos=("-hf-0626",),
            note="long clips on the larger language model",
            inferred="frames, pooling and image mode from NVILA-8B-Video, pooling unconfirmed; the language model "
            "from the size of the published files, its vocabulary unseen",
        ),
        _vila15(
            "NaVILA-8B",
            "Llama-3-8B",
            repos=("a8cheng/navila-llama3-8b-8f",),
            note="robot navigation: the next move from eight frames and an instruction",
        ),
        _vila15(
            "VILA-M3-8B",
            "Llama-3-8B",
            repos=("MONAI/Llama3-VILA-M3-8B",),
            note="medical images, for research: it is no medical device",
        ),
        _vila15(
            "VILA-M3-3B",
            "Sheared-LLaMA-2.7B",
            repos=("MONAI/Llama3-VILA-M3-3B",),
            note="as VILA-M3-8B with a smaller language model, which is no Llama-3",
        ),
        _vila15(
            "VILA-M3-13B",
            "Vicuna-13B",
            repos=("MONAI/Llama3-VILA-M3-13B",),
            note="as VILA-M3-8B with a larger language model, which is no Llama-3",
        ),
        _vila15(
            "Llama-3-VILA1.5-8B",
            "Llama-3-8B",
            repos=(f"{_OWNER}/Llama-3-VILA1.5-8B",),
            note="the general model from which NaVILA and VILA-M3 were tuned",
        ),
    )
}
"""Every row of the family by its name; those of VILA 1.5, from which NVILA grew, last."""
