"""NVILA in torch eager: the reference that every other backend is compared with, and the module that training trains.

Shapes: N tiles, C channels, H W pixels, P patches, E vision width, G visual tokens, D decoder width.
"""

from __future__ import annotations

from torch import Tensor, nn

from nvila_ros.models.decoder import Decoder
from nvila_ros.models.projector import Projector
from nvila_ros.models.siglip import VisionTower
from nvila_ros.models.spec import ModelSpec


class Nvila(nn.Module):
    """The three parts under upstream's names."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.vision_tower = nn.ModuleDict({"vision_model": VisionTower(spec.vision)})
        self.mm_projector = Projector(spec.projector)
        self.llm = Decoder(spec.decoder)

    def vision(self, tile_NCHW: Tensor) -> Tensor:
        """Return the tower's features, (N, P, E)."""
        return self.vision_tower["vision_model"](tile_NCHW)

    def project(self, feat_NPE: Tensor) -> Tensor:
        """Return the visual tokens, (N, G, D), without newlines."""
        return self.mm_projector(feat_NPE)
