"""The family's figures are those of the published files, and the budgets those of the code that makes the prompt."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.models.shapes import expected_shapes
from nvila_ros.models.spec import NO_POOL, DecoderSpec, ModelSpec, ProjectorSpec, VisionSpec, Wrap
from nvila_ros.models.variants import (
    PRECISIONS,
    VARIANTS,
    MediaCost,
    clip_cost,
    count_parameters,
    dead_shapes,
    image_cost,
    kv_bytes,
    nearest_variant,
    tile_range,
    weight_bytes,
)
from nvila_ros.prompt.chat import MediaTokens
from nvila_ros.visual.encode import arrange, merge_features
from nvila_ros.visual.views import view_clip, view_image, view_images


def size_mb(name: str, part: str) -> float:
    """Bytes in MB of a part's bf16 file, dead tensors included."""
    return count_parameters(VARIANTS[name].spec)[part].in_file * 2 / 1e6


VILA15 = [name for name, variant in VARIANTS.items() if variant.spec.has_text_newlines]
NVILA = [name for name in VARIANTS if name not in VILA15]


@pytest.mark.parametrize("name", NVILA)
def test_tower_is_the_published_file(name: str) -> None:
    parameters = count_parameters(VARIANTS[name].spec)["vision_tower"]

    assert parameters.in_file / 1e6 == pytest.approx(413.33, abs=0.005)
    assert size_mb(name, "vision_tower") == pytest.approx(827, abs=0.5)


@pytest.mark.parametrize("name", VILA15)
def test_tower_of_vila15_is_the_published_file_with_its_dead_head(name: str) -> None:
    assert size_mb(name, "vision_tower") == pytest.approx(857, abs=0.6)  # the header is 0.05


@pytest.mark.parametrize(
    ("name", "megabytes"),
    [
        ("NVILA-8B", 125),
        ("NVILA-15B", 194),
        ("NVILA-Lite-2B", 87),
        ("NVILA-Lite-8B", 122),
        ("NVILA-Lite-15B", 160),
        ("NVILA-8B-Video", 58.8),
    ],
)
def test_projector_is_the_published_file(name: str, megabytes: float) -> None:
    assert size_mb(name, "mm_projector") == pytest.approx(megabytes, abs=0.5)


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [("NVILA-Lite-8B", 15.22), ("NVILA-Lite-15B-Video", 29.5), ("VILA-M3-8B", 16.07), ("VILA-M3-3B", 5.40)],
)
def test_language_model_is_the_published_file(name: str, gigabytes: float) -> None:
    assert size_mb(name, "llm") / 1e3 == pytest.approx(gigabytes, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "grid_tiles", "cost"),
    [
        ("NVILA-Lite-2B", 8, MediaCost(9, 9 * 121, 1107)),
        ("NVILA-Lite-2B", 1, MediaCost(1, 121, 123)),
        ("NVILA-8B", 12, MediaCost(17, 3072, 3073)),
        ("NVILA-8B", 9, MediaCost(14, 2304, 2305)),
        ("NVILA-8B-Video", 1, MediaCost(1, 256, 257)),
        ("NaVILA-8B", 1, MediaCost(1, 196, 197)),
    ],
)
def test_image_costs_what_the_reference_embeds(name: str, grid_tiles: int, cost: MediaCost) -> None:
    assert image_cost(VARIANTS[name].spec, grid_tiles) == cost


@pytest.mark.parametrize(
    ("name", "positions"),
    [("NVILA-Lite-2B", 976), ("NVILA-8B", 2056), ("NVILA-8B-Video", 8224), ("NaVILA-8B", 8 * 197)],
)
def test_clip_costs_what_the_reference_embeds(name: str, positions: int) -> None:
    spec = VARIANTS[name].spec

    assert clip_cost(spec, spec.num_video_frames).num_positions == positions


def test_clip_shown_as_images_is_not_pooled() -> None:
    spec = replace(VARIANTS["NVILA-8B-Video"].spec, video_mode="images")

    assert clip_cost(spec, 256) == MediaCost(256, 256 * 256, 256 * 257)


def test_kv_cache_is_that_of_grouped_query_attention() -> None:
    assert kv_bytes(VARIANTS["NVILA-8B"].spec, 1000) == 2 * 28 * 4 * 128 * 2 * 1000


def test_quantized_weights_are_counted_to_the_byte() -> None:
    spec = VARIANTS["NVILA-Lite-2B"].spec

    found = weight_bytes(spec, "w8a8+w4a16")

    tower = 26 * (4 * 1152 * (1152 + 2) + 4304 * (1152 + 2) + 1152 * (4304 + 2))
    tower_rest = 26 * (4 * 1152 + 4304 + 1152 + 4 * 1152) + 1152 * (3 * 14 * 14 + 1 + 1024)
    assert found["vision_tower"] == tower + 2 * tower_rest
    # Half a byte a weight, and four bytes of scale and zero point for each 128 inputs of an output.
    linear = [(1536, 1536)] * 2 + [(256, 1536)] * 2 + [(8960, 1536)] * 2 + [(1536, 8960)]
    decoder = 28 * sum(rows * columns // 2 + rows * (columns // 128) * 4 for rows, columns in linear)
    decoder_rest = 28 * (1536 + 2 * 256 + 2 * 1536) + 1536 + 151667 * 1536
    assert found["llm"] == decoder + 2 * decoder_rest
    assert found["mm_projector"] == weight_bytes(spec, "fp16")["mm_projector"]


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    """Small models of every kind."""
    kind = draw(st.sampled_from(["mlp_downsample", "mlp_downsample_2x2_fix", "mlp_downsample_3x3_fix"]))
    mode = draw(st.sampled_from(["resize", "dynamic", "dynamic_s2"]))
    num_scales = draw(st.integers(1, 3)) if mode == "dynamic_s2" else 0
    grid = draw(st.integers(2, 7))
    px, num_heads = grid * 2, draw(st.sampled_from([1, 2, 4]))
    num_layers = draw(st.integers(1, 4))
    width, decoder_width = 4 * draw(st.integers(1, 4)), 8 * draw(st.integers(1, 20))
    return ModelSpec(
        name="drawn",
        vision=VisionSpec(
            width=width,
            num_layers=num_layers,
            num_heads=2,
            mlp_width=draw(st.integers(1, 40)),
            image_px=px,
            patch_px=2,
            num_live_layers=draw(st.integers(0, num_layers)),
        ),
        projector=ProjectorSpec(kind=kind, in_width=width * max(num_scales, 1), out_width=decoder_width),
        decoder=DecoderSpec(
            width=decoder_width,
            num_layers=draw(st.integers(1, 3)),
            num_heads=num_heads,
            num_kv_heads=draw(st.sampled_from([n for n in (1, 2, 4) if n <= num_heads])),
            mlp_width=draw(st.integers(1, 300)),
            vocab_size=draw(st.integers(1, 50)),
            rope_theta=1e6,
            is_tied=draw(st.booleans()),
            max_positions=2048,
            has_bias=draw(st.booleans()),
        ),
        image_mode=mode,
        num_video_frames=8,
        dtype="bfloat16",
        min_tiles=draw(st.integers(1, 4)),
        max_tiles=draw(st.integers(9, 12)),
        scales=tuple(px * (i + 1) for i in range(num_scales)),
        merge_scale=draw(st.integers(-num_scales, num_scales - 1)) if num_scales else 0,
        video_pools=draw(st.sampled_from([(NO_POOL,), ((4, 1, 1),), ((2, 1, 1), (8, 1, 1))])),
        image_wrap=Wrap(start=draw(st.sampled_from(["", "<"])), end=draw(st.sampled_from(["", "\n"]))),
        video_wrap=Wrap(sep=draw(st.sampled_from(["", "|"]))),
        has_text_newlines=draw(st.booleans()) and mode == "resize",
    )


@given(specs())
def test_parameters_are_those_of_the_parts_written_out(spec: ModelSpec) -> None:
    vision, decoder = spec.vision, spec.decoder
    e, h, d, m = vision.width, vision.mlp_width, decoder.width, decoder.mlp_width
    kv = decoder.num_kv_heads * decoder.head_size
    tower_layer = 4 * (e * e + e) + (h * e + h) + (e * h + e) + 4 * e
    decoder_layer = 2 * d * d + 2 * kv * d + (d + 2 * kv) * decoder.has_bias + 3 * m * d + 2 * d
    n = spec.projector.downsample**2 * spec.projector.in_width
    c = 3 * spec.projector.in_width
    is_3x3 = spec.projector.downsample == 3
    projector = 2 * n + (n * c + c + 2 * c + c * d + d if is_3x3 else n * d + d) + d * d + d

    found = count_parameters(spec)

    assert found["vision_tower"].live == e * 13 + vision.num_patches * e + vision.num_live_layers * tower_layer
    head = e + 4 * (e * e + e) + 2 * e + (h * e + h) + (e * h + e)
    dead = (vision.num_layers - vision.num_live_layers) * tower_layer + 2 * e + head * spec.has_text_newlines
    assert found["vision_tower"].dead == dead
    assert found["mm_projector"].live == projector
    embeddings = decoder.vocab_size * d * (1 if decoder.is_tied else 2)
    assert found["llm"].live == decoder.num_layers * decoder_layer + d + embeddings
    assert sum(part.live for part in found.values()) == sum(map(math.prod, expected_shapes(spec).values()))
    assert not dead_shapes(spec).keys() & expected_shapes(spec).keys()


@given(specs())
def test_fewer_bits_take_fewer_bytes(spec: ModelSpec) -> None:
    by_precision = {precision: weight_bytes(spec, precision) for precision in PRECISIONS}

    live = {part: parameters.live for part, parameters in count_parameters(spec).items()}
    assert by_precision["fp32"] == {part: 4 * count for part, count in live.items()}
    assert by_precision["fp16"] == {part: 2 * count for part, count in live.items()}


def count_positions(parts: tuple[str | MediaTokens, ...]) -> int:
    """Positions of media and texts of one token each, as a prompt shows them."""
    runs = [run for part in parts for run in (part.layout if isinstance(part, MediaTokens) else [part])]
    return sum(run if isinstance(run, int) else 1 for run in runs)


@given(specs(), st.integers(1, 90), st.integers(1, 90))
def test_image_costs_what_it_becomes(spec: ModelSpec, width: int, height: int) -> None:
    view = view_image(spec, np.zeros((height, width, 3), np.uint8))
    blocks = merge_features(spec, view, np.zeros((len(view.tiles), spec.vision.num_patches, spec.vision.width)))
    seen = arrange(spec, view, np.zeros((len(blocks), spec.tokens_per_tile, 1)))

    last = view.grids[-1][0] * view.grids[-1][1] if view.grids else len(view.tiles) - (len(view.tiles) > 1)

    cost = image_cost(spec, last)
    assert tile_range(spec)[0] <= last <= tile_range(spec)[1]
    assert cost == MediaCost(len(view.tiles), len(seen.visual_GD), count_positions(seen.parts))


@given(specs(), st.integers(1, 3), st.sampled_from(["video", "images"]))
def test_clip_costs_what_it_becomes(spec: ModelSpec, num_groups: int, video_mode: str) -> None:
    spec = replace(spec, video_mode=video_mode)
    frames = [np.zeros((4, 4, 3), np.uint8)] * (num_groups * spec.frames_per_group)
    view = view_clip(spec, frames) if video_mode == "video" else view_images(spec, frames)

    seen = arrange(spec, view, np.zeros((len(frames), spec.tokens_per_tile, 1)))

    assert clip_cost(spec, len(frames)) == MediaCost(len(frames), len(seen.visual_GD), count_positions(seen.parts))


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_is_found_whatever_its_vocabulary(name: str) -> None:
    spec = VARIANTS[name].spec
    tuned = replace(spec, name=name, decoder=replace(spec.decoder, vocab_size=7), num_video_frames=64)

    assert nearest_variant(tuned) is VARIANTS[name]
    assert nearest_variant(replace(tuned, name=VARIANTS[name].repos[0].split("/")[1])) is VARIANTS[name]
    assert (nearest_variant(replace(tuned, name="mine")) is VARIANTS[name]) == (name not in VILA15[1::3])


def test_other_dimensions_are_no_variant() -> None:
    spec = VARIANTS["NVILA-8B"].spec

    assert nearest_variant(replace(spec, decoder=replace(spec.decoder, num_layers=27))) is None


@pytest.mark.parametrize("name", NVILA)
def test_variant_is_published_under_its_name(name: str) -> None:
    owner, repo = VARIANTS[name].repos[0].split("/")

    assert (owner, repo) == ("Efficient-Large-Model", name)
