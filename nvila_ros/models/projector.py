"""The projector: merge r x r patches into channels, then an MLP into the decoder's width.

Layer numbers are positions in upstream's `nn.Sequential`, so a checkpoint's keys are this module's keys.
Source: NVLabs/VILA `base_projector.py`: order (row in block, column in block, channel); zero padding at the bottom
and right; exact (erf) GELU; LayerNorm eps 1e-5.

Shapes: N tiles, P patches, E vision width, G visual tokens of a tile, D decoder width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from nvila_ros.models.spec import ProjectorSpec


class SpaceToDepth(nn.Module):
    """Merge each r x r block of a square patch grid into one row of r*r*E channels.

    Blocks come row by row, or column by column as VILA 1.5 was trained.
    """

    def __init__(self, r: int, is_column_major: bool = False) -> None:
        super().__init__()
        self.r, self.is_column_major = r, is_column_major

    def forward(self, feat_NPE: Tensor) -> Tensor:
        """Return (N, ceil(grid/r)^2, r*r*E)."""
        n, num_patches, width = feat_NPE.shape
        grid, r = round(num_patches**0.5), self.r
        pad = -grid % r
        feat = functional.pad(feat_NPE.view(n, grid, grid, width), (0, 0, 0, pad, 0, pad))
        blocks = (grid + pad) // r
        order = (3, 1) if self.is_column_major else (1, 3)
        feat = feat.view(n, blocks, r, blocks, r, width).permute(0, *order, 2, 4, 5)
        return feat.reshape(n, blocks * blocks, r * r * width)


class Projector(nn.Module):
    """`feat_NPE` to `visual_NGD`."""

    def __init__(self, spec: ProjectorSpec) -> None:
        super().__init__()
        r, e, d = spec.downsample, spec.in_width, spec.out_width
        merged = [SpaceToDepth(r, spec.is_column_major), nn.LayerNorm(r * r * e)]
        if spec.kind == "mlp_downsample_3x3_fix":
            merged += [nn.Linear(r * r * e, 3 * e), nn.GELU(), nn.LayerNorm(3 * e), nn.Linear(3 * e, d)]
        else:
            merged += [nn.Linear(r * r * e, d)]
        self.layers = nn.Sequential(*merged, nn.GELU(), nn.Linear(d, d))

    def forward(self, feat_NPE: Tensor) -> Tensor:
        """Return the visual tokens of each tile."""
        return self.layers(feat_NPE)
