"""The spec of a model, as frozen values: the shapes and choices that every backend builds from.

The fields have this project's names; `models/configs.py` translates from upstream's keys. No torch here.
Source: NVILA (arXiv 2412.04468) and the configs published with NVLabs/VILA.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from nvila_ros.errors import CheckpointError, shown
from nvila_ros.models.spec_bounds import (
    MAX_HEAD_SIZE,
    MAX_PATCHES,
    MAX_POOLS,
    MAX_SCALES,
    MAX_WRAP,
    SIZES,
    check_choice,
    check_most,
    check_multiple,
    check_numbers,
    check_pool,
    check_sizes,
)

IMAGE_MODES = ("resize", "dynamic", "dynamic_s2")
"""How a single image becomes tiles: resized to one, cut into a grid and a thumbnail, or cut at several scales."""
VIDEO_MODES = ("video", "images")
"""How a clip is shown: through the video encoder, which may pool it, or each frame as an image of its own."""
PIXEL_DTYPES = ("float32", "float16")
"""Dtype to which pixels are rounded before the tower; upstream's half-precision path uses float16."""
Pool = tuple[int, int, int]
"""Frames, rows and columns of visual tokens that are averaged into one."""
NO_POOL: Pool = (1, 1, 1)

# Space-to-depth factor of each projector kind; the layer numbers in a file follow from the kind.
DOWNSAMPLE_BY_PROJECTOR = {
    "mlp_downsample": 2,
    "mlp_downsample_2x2_fix": 2,
    "mlp_downsample_3x3_fix": 3,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionSpec:
    """SigLIP tower. `num_live_layers` is how many of the file's layers reach the features (all but the last)."""

    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    image_px: int
    patch_px: int
    num_live_layers: int
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        """Check that every size is within its bound."""
        check_sizes(self, "width", "num_layers", "num_heads", "mlp_width", "image_px", "patch_px")
        check_numbers(self, "norm_eps")
        check_most("patch size", self.patch_px, self.image_px)
        check_most("patches of a tile", self.num_patches, MAX_PATCHES)
        if type(self.num_live_layers) is not int or not 0 <= self.num_live_layers <= self.num_layers:
            raise CheckpointError(
                f"num_live_layers must be a whole number from 0 to {self.num_layers}, got {shown(self.num_live_layers)}"
            )

    @property
    def grid(self) -> int:
        """Patches along one side of a tile; pixels behind the last whole one are not seen, as at 384 px by 14."""
        return self.image_px // self.patch_px

    @property
    def num_patches(self) -> int:
        """Patches of a tile."""
        return self.grid**2


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectorSpec:
    """Space-to-depth, then an MLP from `in_width` channels per patch to the decoder's width.

    `is_column_major`: visual tokens come column by column, as VILA had them before NVILA.
    """

    kind: str
    in_width: int
    out_width: int
    is_column_major: bool = False

    def __post_init__(self) -> None:
        """Check that the kind is known and every size within its bound."""
        check_choice("projector kind", self.kind, tuple(DOWNSAMPLE_BY_PROJECTOR))
        check_sizes(self, "in_width", "out_width")

    @property
    def downsample(self) -> int:
        """Patches merged along each side into one visual token."""
        return DOWNSAMPLE_BY_PROJECTOR[self.kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """Qwen2 decoder, or a Llama, whose query, key and value maps have no bias.

    `vocab_size` is the number of rows in the file; ids above it are media and are never sampled.
    """

    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    mlp_width: int
    vocab_size: int
    rope_theta: float
    is_tied: bool
    max_positions: int
    norm_eps: float = 1e-6
    has_bias: bool = True

    def __post_init__(self) -> None:
        """Check that every size is within its bound."""
        names = ("width", "num_layers", "num_heads", "num_kv_heads", "mlp_width", "vocab_size", "max_positions")
        check_sizes(self, *names)
        check_numbers(self, "norm_eps", "rope_theta")
        check_most("channels of an attention head", self.head_size, MAX_HEAD_SIZE)

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.width // self.num_heads


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrap:
    """Text that an encoder puts around visual tokens; each text is tokenized by itself.

    Attributes:
        start: before each tile or frame.
        end: behind each tile or frame.
        sep: behind each pooling level of a clip.
    """

    start: str = ""
    end: str = "\n"
    sep: str = ""

    def __post_init__(self) -> None:
        """Check that each is a short text."""
        for text in (self.start, self.end, self.sep):
            if not isinstance(text, str) or len(text) > MAX_WRAP:
                raise CheckpointError(
                    f"the text around visual tokens must have at most {MAX_WRAP} characters, got {shown(text)}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A whole NVILA, or a VILA 1.5.

    Attributes:
        image_mode: `image_aspect_ratio` upstream, one of `IMAGE_MODES`.
        min_tiles: fewest tiles that `dynamic` cuts an image into, without the thumbnail.
        max_tiles: most tiles of a cut image, without thumbnail and smaller scales.
        scales: sides in px at which `dynamic_s2` shows an image, ascending; the last follows the image's aspect.
            Empty in the other modes.
        merge_scale: index of the scale to whose map the features of all scales are resized.
        video_mode: one of `VIDEO_MODES`.
        video_pools: pooling levels of the video encoder; their tokens follow one another.
        image_wrap: text around the tokens of a tile or image.
        video_wrap: text around the tokens of a frame, after pooling.
        has_text_newlines: the prompt's text has a newline behind each image and frame, as VILA 1.5 writes it.
        num_video_frames: frames that a video is sampled to by default.
        pixel_dtype: one of `PIXEL_DTYPES`.
        dtype: dtype of the weights, as the config states it.
    """

    name: str
    vision: VisionSpec
    projector: ProjectorSpec
    decoder: DecoderSpec
    image_mode: str
    num_video_frames: int
    dtype: str
    min_tiles: int = 1
    max_tiles: int = 12
    scales: tuple[int, ...] = ()
    merge_scale: int = -1
    video_mode: str = "video"
    video_pools: tuple[Pool, ...] = (NO_POOL,)
    image_wrap: Wrap = Wrap()
    video_wrap: Wrap = Wrap()
    has_text_newlines: bool = False
    pixel_dtype: str = "float32"

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        check_sizes(self, "num_video_frames", "min_tiles", "max_tiles")
        vision, projector, decoder = self.vision, self.projector, self.decoder
        check_multiple("vision width", vision.width, "vision heads", vision.num_heads)
        check_multiple("decoder width", decoder.width, "attention heads", decoder.num_heads)
        check_multiple("attention heads", decoder.num_heads, "kv heads", decoder.num_kv_heads)
        check_multiple("the decoder's head size", decoder.head_size, "halves, which rotate together", 2)
        if projector.out_width != decoder.width:
            raise CheckpointError(
                f"the projector must write the decoder's width, got {projector.out_width} and {decoder.width}"
            )
        if projector.in_width != vision.width * max(len(self.scales), 1):
            raise CheckpointError(
                f"the projector must read the vision width of each scale, got {projector.in_width}, "
                f"{vision.width} and {max(len(self.scales), 1)} scales"
            )
        check_choice("tiling kind (image_aspect_ratio)", self.image_mode, IMAGE_MODES)
        check_choice("video mode", self.video_mode, VIDEO_MODES)
        check_choice("pixel dtype", self.pixel_dtype, PIXEL_DTYPES)
        if self.min_tiles > self.max_tiles:
            raise CheckpointError(f"min_tiles must not exceed max_tiles, got {self.min_tiles} and {self.max_tiles}")
        self._check_scales()
        self._check_pools()
        if projector.is_column_major and (self.scales or any(pool[1:] != NO_POOL[1:] for pool in self.video_pools)):
            raise CheckpointError("tokens that come column by column can be neither pooled nor joined over tiles")

    def _check_scales(self) -> None:
        check_most("number of scales", len(self.scales), MAX_SCALES)
        if (self.image_mode == "dynamic_s2") != bool(self.scales):
            raise CheckpointError(f"scales go with dynamic_s2 alone, got {self.scales} and {self.image_mode!r}")
        for scale in self.scales:
            check_multiple("a scale", scale, "image size", self.vision.image_px)
        if list(self.scales) != sorted(set(self.scales)):
            raise CheckpointError(f"scales must ascend, got {self.scales}")
        if self.scales and self.scales[0] != self.vision.image_px:
            raise CheckpointError(
                f"the first scale must be the image size {self.vision.image_px}, got {self.scales[0]}"
            )
        is_index = type(self.merge_scale) is int and -len(self.scales) <= self.merge_scale < len(self.scales)
        if self.scales and not is_index:
            raise CheckpointError(f"merge_scale must be an index of {self.scales}, got {self.merge_scale}")
        if self.scales and (self.scales[-1] // self.vision.image_px) ** 2 > self.max_tiles:
            raise CheckpointError(
                f"max_tiles must hold the last scale's {(self.scales[-1] // self.vision.image_px) ** 2} tiles, "
                f"got {self.max_tiles}"
            )

    def _check_pools(self) -> None:
        if not self.video_pools:
            raise CheckpointError("video_pools must name at least one level, got none")
        check_most("number of video_pools", len(self.video_pools), MAX_POOLS)
        for pool in self.video_pools:
            check_pool(pool, SIZES["num_video_frames"].most)
            _, rows, columns = pool
            check_multiple("rows of visual tokens", self.token_grid, "the pool's rows", rows)
            check_multiple("columns of visual tokens", self.token_grid, "the pool's columns", columns)
        check_most("frames that are pooled together", self.frames_per_group, SIZES["num_video_frames"].most)

    @property
    def token_grid(self) -> int:
        """Visual tokens along one side of a tile."""
        return -(-self.vision.grid // self.projector.downsample)

    @property
    def tokens_per_tile(self) -> int:
        """Visual tokens of one tile, without the newline that follows each tile."""
        return self.token_grid**2

    @property
    def frames_per_group(self) -> int:
        """A pooled clip's number of frames must be a multiple of this."""
        return math.lcm(*(frames for frames, _, _ in self.video_pools))


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """Choices of the user beside the checkpoint; the defaults are as published.

    Attributes:
        video_mode: one of `VIDEO_MODES`; a model without a video encoder is shown images in either.
        pixel_dtype: one of `PIXEL_DTYPES`.
        max_tiles: most tiles of a cut image; 0 keeps the checkpoint's number.
        change_threshold: see `visual.changes.ChangeRule`, as the next.
        key_every: frames.
    """

    video_mode: str = VIDEO_MODES[0]
    pixel_dtype: str = PIXEL_DTYPES[0]
    max_tiles: int = 0
    change_threshold: float = 0.0
    key_every: int = 8

    def apply(self, spec: ModelSpec) -> ModelSpec:
        """Return the spec with these choices.

        Raises:
            CheckpointError: a value does not suit the checkpoint.
        """
        tiles = self.max_tiles or spec.max_tiles
        mode = spec.video_mode if self.video_mode == VIDEO_MODES[0] else self.video_mode
        return replace(spec, video_mode=mode, pixel_dtype=self.pixel_dtype, max_tiles=tiles)


PUBLISHED = Overrides()
"""Everything as the checkpoint was published."""
