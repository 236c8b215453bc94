"""What a checkpoint's configs say, as frozen values: the shapes and choices that every backend builds from.

The fields keep this project's vocabulary; `models/checkpoint.py` translates from upstream's keys. No torch here.
Source: NVILA (arXiv 2412.04468) and the configs published with NVLabs/VILA.
"""

from __future__ import annotations

from dataclasses import dataclass

from nvila_ros.errors import CheckpointError

# Space-to-depth factor of each projector kind; the file's layer numbers follow from the kind (see projector_layers).
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

    @property
    def grid(self) -> int:
        """Patches along one side of a tile."""
        return self.image_px // self.patch_px

    @property
    def num_patches(self) -> int:
        """Patches of a tile."""
        return self.grid**2


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectorSpec:
    """Space-to-depth, then an MLP from `in_width` channels per patch to the decoder's width."""

    kind: str
    in_width: int
    out_width: int

    @property
    def downsample(self) -> int:
        """Patches merged along each side into one visual token."""
        return DOWNSAMPLE_BY_PROJECTOR[self.kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """Qwen2 decoder. `vocab_size` counts the rows in the file: ids above it are media and must never be sampled."""

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

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.width // self.num_heads


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A whole NVILA.

    Attributes:
        image_mode: `image_aspect_ratio` upstream; how a single image becomes tiles.
        num_video_frames: frames that a video is sampled to by default.
        dtype: dtype of the weights in the file.
    """

    name: str
    vision: VisionSpec
    projector: ProjectorSpec
    decoder: DecoderSpec
    image_mode: str
    num_video_frames: int
    dtype: str

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        vision, projector, decoder = self.vision, self.projector, self.decoder
        _divides("image size", vision.image_px, "patch size", vision.patch_px)
        _divides("vision width", vision.width, "vision heads", vision.num_heads)
        _divides("decoder width", decoder.width, "attention heads", decoder.num_heads)
        _divides("attention heads", decoder.num_heads, "kv heads", decoder.num_kv_heads)
        if projector.out_width != decoder.width:
            raise CheckpointError(
                f"the projector must write the decoder's width, got {projector.out_width} and {decoder.width}"
            )

    @property
    def tokens_per_tile(self) -> int:
        """Visual tokens of one tile, without the newline that follows each tile."""
        return (-(-self.vision.grid // self.projector.downsample)) ** 2


def _divides(whole_name: str, whole: int, part_name: str, part: int) -> None:
    if part <= 0 or whole % part:
        raise CheckpointError(f"{whole_name} must be a multiple of {part_name}, got {whole} and {part}")
