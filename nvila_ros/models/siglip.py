"""The SigLIP vision tower: tiles in, features of the last layer but one out, without the final norm.

Module names are upstream's, so a checkpoint's keys are this module's keys. Layers that cannot reach the features (the
last one, and `post_layernorm`) are not built. Source: SigLIP as used by NVILA, `mm_vision_select_layer` -2.

Shapes: N tiles, C channels, H W pixels, P patches, E vision width, A heads, S head size.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from nvila_ros.models.embedding import embedding
from nvila_ros.models.spec import VisionSpec


class VisionTower(nn.Module):
    """`tile_NCHW` in [-1, 1] to `feat_NPE`."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embeddings = PatchEmbeddings(spec)
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(VisionLayer(spec) for _ in range(spec.num_live_layers))})

    def forward(self, tile_NCHW: Tensor) -> Tensor:
        """Return the features, dtype of the weights."""
        feat_NPE = self.embeddings(tile_NCHW)
        for layer in self.encoder["layers"]:
            feat_NPE = layer(feat_NPE)
        return feat_NPE


class PatchEmbeddings(nn.Module):
    """Patch convolution plus learned absolute positions."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, spec.width, spec.patch_px, stride=spec.patch_px)
        self.position_embedding = embedding(spec.num_patches, spec.width)

    def forward(self, tile_NCHW: Tensor) -> Tensor:
        """Return (N, P, E), patches in raster order."""
        patch_NPE = self.patch_embedding(tile_NCHW).flatten(2).transpose(1, 2)
        return patch_NPE + self.position_embedding.weight


class VisionLayer(nn.Module):
    """Pre-norm transformer layer with full attention and a tanh-GELU MLP."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(spec.width, eps=spec.norm_eps)
        self.self_attn = VisionAttention(spec)
        self.layer_norm2 = nn.LayerNorm(spec.width, eps=spec.norm_eps)
        self.mlp = VisionMlp(spec)

    def forward(self, x_NPE: Tensor) -> Tensor:
        """Return (N, P, E)."""
        x_NPE = x_NPE + self.self_attn(self.layer_norm1(x_NPE))
        return x_NPE + self.mlp(self.layer_norm2(x_NPE))


class VisionAttention(nn.Module):
    """Every patch attends to every patch of its tile."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.num_heads = spec.num_heads
        self.q_proj = nn.Linear(spec.width, spec.width)
        self.k_proj = nn.Linear(spec.width, spec.width)
        self.v_proj = nn.Linear(spec.width, spec.width)
        self.out_proj = nn.Linear(spec.width, spec.width)

    def forward(self, x_NPE: Tensor) -> Tensor:
        """Return (N, P, E)."""
        q_NAPS, k_NAPS, v_NAPS = (self._heads(f(x_NPE)) for f in (self.q_proj, self.k_proj, self.v_proj))
        # Not fused, so that the features equal the reference's bit for bit.
        score_NAPP = q_NAPS @ k_NAPS.transpose(2, 3) * q_NAPS.shape[-1] ** -0.5
        mixed_NAPS = score_NAPP.softmax(-1) @ v_NAPS
        return self.out_proj(mixed_NAPS.transpose(1, 2).flatten(2))

    def _heads(self, x_NPE: Tensor) -> Tensor:
        return x_NPE.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class VisionMlp(nn.Module):
    """Two linear maps with GELU (tanh form, unlike the projector's) between."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.fc1 = nn.Linear(spec.width, spec.mlp_width)
        self.fc2 = nn.Linear(spec.mlp_width, spec.width)

    def forward(self, x_NPE: Tensor) -> Tensor:
        """Return (N, P, E)."""
        return self.fc2(functional.gelu(self.fc1(x_NPE), approximate="tanh"))
