"""The decoder, of Qwen2 or Llama, with an explicit KV cache: embeddings in, logits out.

Module names are upstream's, so a checkpoint's keys are this module's keys. Positions are plain 1-D RoPE over the
spliced sequence; media rows count as ordinary tokens. The two kinds differ in what the spec says: biases, the base of
the angles, the norms' eps. Source: Qwen2 (arXiv 2407.10671) as NVILA uses it, Llama (arXiv 2307.09288, 2407.21783) as
VILA 1.5 does.

Shapes: B batch, L tokens in this call, T of them wanted, M tokens in the cache including this call, D
width, A query heads, K kv heads, S head size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from nvila_ros.errors import ShapeError
from nvila_ros.models.embedding import embedding
from nvila_ros.models.spec import DecoderSpec

_MOST_SCORED = 512
"""Most tokens for which training on a CPU keeps all attention scores; their bytes grow by the square."""


class KvCache:
    """Keys and values of every layer, allocated once; `length` tokens are filled.

    Attributes:
        k: (layers, B, K, capacity, S).
        v: as k.
    """

    def __init__(self, spec: DecoderSpec, capacity: int, batch: int = 1, dtype: torch.dtype = torch.float32) -> None:
        shape = (spec.num_layers, batch, spec.num_kv_heads, capacity, spec.head_size)
        self.k = torch.zeros(shape, dtype=dtype)
        self.v = torch.zeros(shape, dtype=dtype)
        self.length = 0

    def append(self, layer: int, k_BKLS: Tensor, v_BKLS: Tensor) -> tuple[Tensor, Tensor]:
        """Store this call's rows behind the filled ones and return all rows, (B, K, M, S) each.

        The caller advances `length` once all layers have appended.

        Raises:
            ShapeError: they do not fit.
        """
        end = self.length + k_BKLS.shape[2]
        if end > self.k.shape[3]:
            raise ShapeError(f"the cache holds {self.k.shape[3]} tokens, got {end}; give it a larger capacity")
        self.k[layer, :, :, self.length : end] = k_BKLS
        self.v[layer, :, :, self.length : end] = v_BKLS
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]


class Decoder(nn.Module):
    """Qwen2ForCausalLM or LlamaForCausalLM: `model.*` and, where not tied, `lm_head`."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.model = nn.ModuleDict(
            {
                "embed_tokens": embedding(spec.vocab_size, spec.width),
                "layers": nn.ModuleList(DecoderLayer(spec, i) for i in range(spec.num_layers)),
                "norm": nn.RMSNorm(spec.width, eps=spec.norm_eps),
            }
        )
        if not spec.is_tied:
            self.lm_head = nn.Linear(spec.width, spec.vocab_size, bias=False)

    def embed(self, ids_BL: Tensor) -> Tensor:
        """Return the embeddings of token ids, (B, L, D)."""
        return self.model["embed_tokens"](ids_BL)

    def forward(
        self,
        embeds_BLD: Tensor,
        cache: KvCache | None = None,
        positions_L: Tensor | None = None,
        sees_LM: Tensor | None = None,
    ) -> Tensor:
        """Return the normed hidden states, (B, L, D); with a cache, this call's tokens are appended to it.

        Args:
            embeds_BLD: of the new tokens.
            cache: of the tokens before these.
            positions_L: of each token; None continues those of the cache. (B, 1, L) where samples differ.
            sees_LM: which rows each token attends to, bool; None is causal. (B, 1, L, M) where samples differ.
        """
        start = cache.length if cache else 0
        num_tokens = embeds_BLD.shape[1]
        if positions_L is None:
            positions_L = torch.arange(start, start + num_tokens, device=embeds_BLD.device)
        cos_LS, sin_LS = rotary_tables(self.spec, positions_L)
        hidden_BLD = embeds_BLD
        for layer in self.model["layers"]:
            hidden_BLD = layer(hidden_BLD, cos_LS, sin_LS, cache, sees_LM)
        if cache:
            cache.length += num_tokens
        return self.model["norm"](hidden_BLD)

    def head(self, hidden_BLD: Tensor) -> Tensor:
        """Return logits over the checkpoint's vocabulary, (B, L, V)."""
        if self.spec.is_tied:
            return functional.linear(hidden_BLD, self.model["embed_tokens"].weight)
        return self.lm_head(hidden_BLD)


class DecoderLayer(nn.Module):
    """Pre-norm layer: grouped-query attention, then a gated MLP."""

    def __init__(self, spec: DecoderSpec, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(spec.width, eps=spec.norm_eps)
        self.self_attn = DecoderAttention(spec, layer_idx)
        self.post_attention_layernorm = nn.RMSNorm(spec.width, eps=spec.norm_eps)
        self.mlp = GatedMlp(spec)

    def forward(
        self,
        x_BLD: Tensor,
        cos_LS: Tensor,
        sin_LS: Tensor,
        cache: KvCache | None,
        sees_LM: Tensor | None = None,
        wanted_BT: Tensor | None = None,
    ) -> Tensor:
        """Return (B, L, D), or (B, T, D) of the tokens that are wanted; keys and values are those of all."""
        attended = self.self_attn(self.input_layernorm(x_BLD), cos_LS, sin_LS, cache, sees_LM, wanted_BT)
        x_BTD = (x_BLD if wanted_BT is None else take_rows(x_BLD, wanted_BT)) + attended
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class DecoderAttention(nn.Module):
    """Causal grouped-query attention; query, key and value maps may carry a bias, the output map does not."""

    def __init__(self, spec: DecoderSpec, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.head_size = spec.head_size
        kv_width = spec.num_kv_heads * spec.head_size
        self.q_proj = nn.Linear(spec.width, spec.width, bias=spec.has_bias)
        self.k_proj = nn.Linear(spec.width, kv_width, bias=spec.has_bias)
        self.v_proj = nn.Linear(spec.width, kv_width, bias=spec.has_bias)
        self.o_proj = nn.Linear(spec.width, spec.width, bias=False)

    def forward(
        self,
        x_BLD: Tensor,
        cos_LS: Tensor,
        sin_LS: Tensor,
        cache: KvCache | None,
        sees_LM: Tensor | None = None,
        wanted_BT: Tensor | None = None,
    ) -> Tensor:
        """Return (B, L, D), or (B, T, D) of the wanted tokens; then `sees_LM` is required."""
        k_BKMS = rotate(self._heads(self.k_proj(x_BLD)), cos_LS, sin_LS)
        v_BKMS = self._heads(self.v_proj(x_BLD))
        if cache:
            k_BKMS, v_BKMS = cache.append(self.layer_idx, k_BKMS, v_BKMS)
        if wanted_BT is not None:
            if sees_LM is None:
                raise ShapeError("wanted tokens need a mask over all, got none; give sees_LM")
            x_BLD, cos_LS, sin_LS, sees_LM = (take_rows(each, wanted_BT) for each in (x_BLD, cos_LS, sin_LS, sees_LM))
        q_BALS = rotate(self._heads(self.q_proj(x_BLD)), cos_LS, sin_LS)
        return self.o_proj(attend(q_BALS, k_BKMS, v_BKMS, sees_LM).transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_size)).transpose(1, 2)


class GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(spec.width, spec.mlp_width, bias=False)
        self.up_proj = nn.Linear(spec.width, spec.mlp_width, bias=False)
        self.down_proj = nn.Linear(spec.mlp_width, spec.width, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return (B, L, D)."""
        return self.down_proj(functional.silu(self.gate_proj(x_BLD)) * self.up_proj(x_BLD))


def attend(q_BALS: Tensor, k_BKMS: Tensor, v_BKMS: Tensor, sees_LM: Tensor | None = None) -> Tensor:
    """Attention of the last L of M tokens, causal unless `sees_LM` is given; return (B, A, L, S)."""
    num_new, num_all = q_BALS.shape[2], k_BKMS.shape[2]
    if sees_LM is None:
        if num_new == num_all:
            return functional.scaled_dot_product_attention(q_BALS, k_BKMS, v_BKMS, is_causal=True, enable_gqa=True)
        sees_LM = torch.ones(num_new, num_all, dtype=torch.bool, device=q_BALS.device).tril(num_all - num_new)
    if q_BALS.requires_grad and q_BALS.device.type == "cpu" and num_all <= _MOST_SCORED:
        return _attend_with_gradients(q_BALS, k_BKMS, v_BKMS, sees_LM)
    return functional.scaled_dot_product_attention(q_BALS, k_BKMS, v_BKMS, attn_mask=sees_LM, enable_gqa=True)


def _attend_with_gradients(q_BALS: Tensor, k_BKMS: Tensor, v_BKMS: Tensor, sees_LM: Tensor) -> Tensor:
    """Attend by plain products: torch's fused attention takes 2.4 times as long there and back on a CPU."""
    num_kv_heads, head_size = k_BKMS.shape[1], q_BALS.shape[3]
    q_BKGS = q_BALS.unflatten(1, (num_kv_heads, -1)).flatten(2, 3) * head_size**-0.5  # G: all tokens of K's queries
    score_BALM = (q_BKGS @ k_BKMS.transpose(2, 3)).view(*q_BALS.shape[:3], -1)
    share_BALM = score_BALM.masked_fill(~sees_LM, float("-inf")).softmax(-1)
    share_BKGM = share_BALM.view(*q_BKGS.shape[:3], -1)
    return (share_BKGM @ v_BKMS).view(q_BALS.shape)


def take_rows(x: Tensor, wanted_BT: Tensor) -> Tensor:
    """Return some rows of each sample, (B, ..., T, C) of (B, ..., L, C)."""
    index = wanted_BT.view(len(wanted_BT), *(1 for _ in x.shape[1:-2]), -1, 1)
    return x.gather(-2, index.expand(*x.shape[:-2], -1, x.shape[-1]))


def rotary_tables(spec: DecoderSpec, positions_L: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos and sin of positions, (L, S) fp32 each; both halves of S hold the same angles."""
    exponent = torch.arange(0, spec.head_size, 2, dtype=torch.float32, device=positions_L.device) / spec.head_size
    frequency = 1.0 / spec.rope_theta**exponent  # rounded before the product, as the checkpoints were trained
    angle = positions_L.to(torch.float32)[..., None] * frequency
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x_BALS: Tensor, cos_LS: Tensor, sin_LS: Tensor) -> Tensor:
    """Apply rotary positions; channel i pairs with i + S/2."""
    first, second = x_BALS.chunk(2, dim=-1)
    rotated = torch.cat([-second, first], dim=-1)
    return x_BALS * cos_LS.to(x_BALS.dtype) + rotated * sin_LS.to(x_BALS.dtype)
