"""Build the form of the decoder that ONNX Runtime decodes fastest: no copies, and fused operators between the products.

Past and new keys and values are one input, and the output with the new rows is bound to memory within it: the runtime
binds `new` over rows of `all`. This is sound because no attention can run before its rows are written: its queries and
its new keys are outputs of one split, and the split of the values runs before the rotation of both.

Query heads are folded into rows of their kv head, as in the other forms, so that keys are never repeated.

Shapes: L tokens in this call, M rows of the cache that are read, D decoder width, A query heads, K kv heads, Q = A / K,
S head size. Activations are (1, L, ...), as the runtime's operators want them.
"""

from __future__ import annotations

import numpy as np

from nvila_ros.export.graph import ORT_DOMAIN, GraphBuilder
from nvila_ros.models.quantized import Weight, Weights, as_array, join_outputs
from nvila_ros.models.spec import DecoderSpec


def build_overlap(graph: GraphBuilder, spec: DecoderSpec, weights: Weights) -> str:
    """Build the graph from `embeds` (1, L, D), `cos` and `sin` (L, S/2), `mask` (L, M) and the cache to the last norm.

    The cache is `all_k_0`... (M, K, S) and `new_k_0`... (1, L, K * S), which must lie among those of `all`.

    Returns:
        name of the normed hidden states, (1, L, D).
    """
    attention = _OverlapAttention(graph, spec, weights)
    x = graph.input("embeds", (1, "L", spec.width))
    normed = graph.rms_norm(x, "llm.model.layers.0.input_layernorm", weights, spec.norm_eps)
    norms = [f"llm.model.layers.{i}.input_layernorm" for i in range(1, spec.num_layers)] + ["llm.model.norm"]
    for i, next_norm in enumerate(norms):
        name, mixed = f"llm.model.layers.{i}", attention.build(i, normed)
        x, normed = _add_norm(graph, x, mixed, f"{name}.post_attention_layernorm", weights, spec.norm_eps)
        gate = graph.silu(graph.linear(normed, f"{name}.mlp.gate_proj", weights))
        hidden = graph.op("Mul", gate, graph.linear(normed, f"{name}.mlp.up_proj", weights))
        down = graph.linear(hidden, f"{name}.mlp.down_proj", weights)
        x, normed = _add_norm(graph, x, down, next_norm, weights, spec.norm_eps)
    return normed


def _add_norm(graph: GraphBuilder, x: str, change: str, name: str, weights: Weights, eps: float) -> tuple[str, str]:
    """Return the sum of both and its norm."""
    scale = graph.plain(f"{name}.weight", weights)
    kind = "SkipSimplifiedLayerNormalization"
    normed = graph.op(kind, x, change, scale, num_outputs=4, domain=ORT_DOMAIN, epsilon=eps)
    return f"{normed}:3", normed


class _OverlapAttention:
    """Attention over all rows of the cache, the new ones among them."""

    def __init__(self, graph: GraphBuilder, spec: DecoderSpec, weights: Weights) -> None:
        self.graph, self.spec, self.weights = graph, spec, weights
        self.cos, self.sin = (graph.input(name, ("L", spec.head_size // 2)) for name in ("cos", "sin"))
        mask = graph.input("mask", ("L", "M"))
        self.mask = graph.op("Concat", *[mask] * (spec.num_heads // spec.num_kv_heads), axis=0)  # (Q*L, M)

    def build(self, layer: int, x: str) -> str:
        """Return the attention's output, (1, L, D)."""
        graph, spec, s = self.graph, self.spec, self.spec.head_size
        num_kv, rows = spec.num_kv_heads, spec.num_heads // spec.num_kv_heads
        k, v = (self._declare(layer, key) for key in "kv")
        q = self._queries(layer, x)
        q = graph.transpose(graph.reshape(q, -1, num_kv, rows, s), 1, 2, 0, 3)  # (K, Q, L, S)
        q = graph.reshape(q, num_kv, -1, s)
        # Both products read the cache as it lies, (M, K, S).
        scores = graph.op("FusedMatMul", q, k, domain=ORT_DOMAIN, transBatchB=1, transB=1, alpha=s**-0.5)  # (K, Q*L, M)
        share = graph.op("Softmax", graph.op("Add", scores, self.mask), axis=-1)
        mixed = graph.op("FusedMatMul", share, v, domain=ORT_DOMAIN, transBatchB=1)  # (K, Q*L, S)
        mixed = graph.reshape(mixed, num_kv, rows, -1, s)
        mixed = graph.reshape(graph.transpose(mixed, 2, 0, 1, 3), 1, -1, spec.width)  # (1, L, K*Q*S)
        return graph.linear(mixed, f"llm.model.layers.{layer}.self_attn.o_proj", self.weights)

    def _declare(self, layer: int, key: str) -> str:
        """Declare all rows as an input, (M, K, S), and the new ones as an output, (1, L, K * S)."""
        graph, num_kv, s = self.graph, self.spec.num_kv_heads, self.spec.head_size
        graph.output(f"new_{key}_{layer}", f"new_{key}_{layer}", (1, "L", num_kv * s))
        return graph.input(f"all_{key}_{layer}", ("M", num_kv, s))

    def _queries(self, layer: int, x: str) -> str:
        """Return the rotated queries, (1, L, A * S), and give the new keys and values."""
        graph, s = self.graph, self.spec.head_size
        width, kv_width = self.spec.width, self.spec.num_kv_heads * s
        widths = (width + kv_width, kv_width)
        # Each output has its final name here: a copy of it would be written too late.
        qk, _ = graph.split(self._project(layer, x), widths, (f"qk_{layer}", f"new_v_{layer}"))
        positions = graph.ints(0)  # of the first row; the tables have a row for each token
        turned = graph.op("RotaryEmbedding", qk, positions, self.cos, self.sin, domain=ORT_DOMAIN)
        return graph.split(turned, (width, kv_width), (f"q_{layer}", f"new_k_{layer}"))[0]

    def _project(self, layer: int, x: str) -> str:
        """Return queries, keys and values of the new tokens, (1, L, (A + 2K) * S); maps of one kind are joined."""
        graph, stem = self.graph, f"llm.model.layers.{layer}.self_attn"
        names = [f"{stem}.{key}_proj" for key in "qkv"]
        joined = join_outputs([self.weights[f"{name}.weight"] for name in names])
        if joined is None:
            return graph.op("Concat", *(graph.linear(x, name, self.weights) for name in names), axis=-1)
        both: dict[str, Weight] = {f"{stem}.qkv_proj.weight": joined}
        if f"{names[0]}.bias" in self.weights:
            both[f"{stem}.qkv_proj.bias"] = np.concatenate([as_array(self.weights, f"{name}.bias") for name in names])
        return graph.linear(x, f"{stem}.qkv_proj", both)
