"""Build the decoder's ONNX graph, in three forms that differ in how keys and values are kept.

- append: reads the past keys and values token-major and returns only the new ones, so a runtime that binds `new`
  directly behind `past` in one buffer appends without a copy. Query heads are folded into rows of their kv head.
- in place: reads a cache of fixed size and a position to write to, and returns the same cache; a runtime binds both to
  one address. Attention, norms and rotation are ONNX's own operators, which TensorRT maps onto its kernels.
- overlap: for ONNX Runtime alone, see `overlap.py`.

Rotary angles and the mask are inputs, so the graph has no fixed length. Activations stay two-dimensional up to the
attention, since TensorRT leaves a four-bit weight outside its GEMM where the input has three dimensions.

Shapes: L tokens in this call, T past tokens, M = T + L, or the cache's size in place, R tokens whose logits are wanted,
D decoder width, A query heads, K kv heads, Q = A / K, S head size, V vocabulary.
"""

from __future__ import annotations

from nvila_ros.export.forms import ORT, GraphForm
from nvila_ros.export.graph import GraphBuilder
from nvila_ros.export.overlap import build_overlap
from nvila_ros.models.quantized import Weights
from nvila_ros.models.shapes import EMBEDDING, HEAD
from nvila_ros.models.spec import DecoderSpec

NUM_TOP = 64
"""Highest logits that a graph for TensorRT returns sorted, so that the host need not fetch the whole vocabulary."""


def build_decoder(spec: DecoderSpec, weights: Weights, form: GraphForm = ORT) -> GraphBuilder:
    """Build the graph from `embeds` (L, D) and the past to `logits` (R, V) float32 and the new keys and values.

    Further inputs: `rows` (R,) int64, the tokens whose logits are wanted. Append has `cos` and `sin` (L, S), additive
    `mask` (L, M), and `past_k_0`... (T, K, S), and returns `new_k_0`... (L, K, S). In place has `cos` and `sin`
    (1, L, S/2), `mask` (L, M) bool, true where a token attends, `start` (1,) int64, which is T, and `past_k_0`...
    (1, K, M, S), and returns `present_k_0`... of that shape; `start` + L must not exceed M, which no runtime checks.
    Overlap has `embeds` (1, L, D) and the inputs of `build_overlap`. In float16 there are also `top_logits` float32 and
    `top_ids` int64, (R, 64) or (R, V), best first.
    """
    graph = GraphBuilder("decoder", form)
    if form.decoder == "overlap":
        rows = graph.input("rows", ("R",), "int64")
        normed = graph.op("Gather", build_overlap(graph, spec, weights), rows, axis=1)
        _head(graph, spec, weights, graph.reshape(normed, -1, spec.width))
        return graph
    x = graph.input("embeds", ("L", spec.width))
    attend = _InPlace(graph, spec, weights) if form.decoder == "in_place" else _Append(graph, spec, weights)
    for i in range(spec.num_layers):
        name = f"llm.model.layers.{i}"
        normed = graph.rms_norm(x, f"{name}.input_layernorm", weights, spec.norm_eps)
        x = graph.op("Add", x, attend.build(i, normed))
        normed = graph.rms_norm(x, f"{name}.post_attention_layernorm", weights, spec.norm_eps)
        gate = graph.silu(graph.linear(normed, f"{name}.mlp.gate_proj", weights))
        hidden = graph.op("Mul", gate, graph.linear(normed, f"{name}.mlp.up_proj", weights))
        x = graph.op("Add", x, graph.linear(hidden, f"{name}.mlp.down_proj", weights))
    wanted = graph.op("Gather", x, graph.input("rows", ("R",), "int64"), axis=0)  # (R, D)
    _head(graph, spec, weights, graph.rms_norm(wanted, "llm.model.norm", weights, spec.norm_eps))
    return graph


def _head(graph: GraphBuilder, spec: DecoderSpec, weights: Weights, normed: str) -> None:
    """Output the logits of the wanted tokens, (R, D). A quantized head beside a tied table has the name of lm_head."""
    head = HEAD if HEAD in weights else EMBEDDING
    logits = graph.cast(graph.matmul(normed, head, weights[head]), "float32")
    graph.output(logits, "logits", ("R", spec.vocab_size), "float32")
    if graph.form.dtype == "float16":
        count = min(NUM_TOP, spec.vocab_size)
        top = graph.op("TopK", logits, graph.ints(count), num_outputs=2, axis=-1)
        graph.output(top, "top_logits", ("R", count), "float32")
        graph.output(f"{top}:1", "top_ids", ("R", count), "int64")


class _Append:
    """Attention over past and new rows; query heads are folded into rows of their kv head, so keys are not repeated."""

    def __init__(self, graph: GraphBuilder, spec: DecoderSpec, weights: Weights) -> None:
        self.graph, self.spec, self.weights = graph, spec, weights
        self.cos, self.sin = (graph.input(name, ("L", spec.head_size)) for name in ("cos", "sin"))
        mask = graph.input("mask", ("L", "M"))
        # A row for each row of the scores: TensorRT fuses an attention only if its mask is added without broadcasting.
        self.mask = graph.op("Concat", *[mask] * (spec.num_heads // spec.num_kv_heads), axis=0)  # (Q*L, M)

    def build(self, layer: int, x: str) -> str:
        """Return the attention's output, (L, D)."""
        graph, s, num_kv = self.graph, self.spec.head_size, self.spec.num_kv_heads
        rows = self.spec.num_heads // num_kv
        name = f"llm.model.layers.{layer}.self_attn"
        q = graph.reshape(graph.linear(x, f"{name}.q_proj", self.weights), -1, self.spec.num_heads, s)
        q = graph.op("Mul", self._rotate(q), graph.scalar(s**-0.5))
        k, v = (self._append_past(layer, key, x) for key in ("k", "v"))
        q = graph.transpose(graph.reshape(q, -1, num_kv, rows, s), 1, 2, 0, 3)  # (K, Q, L, S)
        scores = graph.op("MatMul", graph.reshape(q, num_kv, -1, s), graph.transpose(k, 1, 2, 0))  # (K, Q*L, M)
        share = graph.op("Softmax", graph.op("Add", scores, self.mask), axis=-1)
        mixed = graph.op("MatMul", share, graph.transpose(v, 1, 0, 2))  # (K, Q*L, S)
        mixed = graph.transpose(graph.reshape(mixed, num_kv, rows, -1, s), 2, 0, 1, 3)  # (L, K, Q, S)
        return graph.linear(graph.reshape(mixed, -1, self.spec.width), f"{name}.o_proj", self.weights)

    def _append_past(self, layer: int, key: str, x: str) -> str:
        """Return all keys or values, (M, K, S), and declare the new ones as an output."""
        graph, num_kv, s = self.graph, self.spec.num_kv_heads, self.spec.head_size
        new = graph.linear(x, f"llm.model.layers.{layer}.self_attn.{key}_proj", self.weights)
        new = graph.reshape(new, -1, num_kv, s)
        if key == "k":
            new = self._rotate(new)
        past = graph.input(f"past_{key}_{layer}", ("T", num_kv, s))
        graph.output(new, f"new_{key}_{layer}", ("L", num_kv, s))
        return graph.op("Concat", past, new, axis=0)

    def _rotate(self, x: str) -> str:
        """Rotary positions on (L, heads, S); channel i pairs with i + S/2."""
        graph, s = self.graph, self.spec.head_size
        first = graph.op("Slice", x, graph.ints(0), graph.ints(s // 2), graph.ints(2))
        second = graph.op("Slice", x, graph.ints(s // 2), graph.ints(s), graph.ints(2))
        turned = graph.op("Concat", graph.op("Neg", second), first, axis=2)
        along, across = (graph.op("Unsqueeze", table, graph.ints(1)) for table in (self.cos, self.sin))
        return graph.op("Add", graph.op("Mul", x, along), graph.op("Mul", turned, across))


class _InPlace:
    """Attention over a cache of fixed size, into which the new rows are written first."""

    def __init__(self, graph: GraphBuilder, spec: DecoderSpec, weights: Weights) -> None:
        self.graph, self.spec, self.weights = graph, spec, weights
        self.cos, self.sin = (graph.input(name, (1, "L", spec.head_size // 2)) for name in ("cos", "sin"))
        self.mask = graph.input("mask", ("L", "M"), "bool")
        self.start = graph.input("start", (1,), "int64")

    def build(self, layer: int, x: str) -> str:
        """Return the attention's output, (L, D)."""
        graph, spec = self.graph, self.spec
        name = f"llm.model.layers.{layer}.self_attn"
        q = self._rotate(self._heads(x, f"{name}.q_proj", spec.num_heads))
        k = self._write(layer, "k", self._rotate(self._heads(x, f"{name}.k_proj", spec.num_kv_heads)))
        v = self._write(layer, "v", self._heads(x, f"{name}.v_proj", spec.num_kv_heads))
        mixed = graph.op("Attention", q, k, v, self.mask, scale=spec.head_size**-0.5)  # (1, A, L, S)
        mixed = graph.reshape(graph.transpose(mixed, 0, 2, 1, 3), -1, spec.width)
        return graph.linear(mixed, f"{name}.o_proj", self.weights)

    def _heads(self, x: str, name: str, num_heads: int) -> str:
        """Return (1, heads, L, S)."""
        y = self.graph.reshape(self.graph.linear(x, name, self.weights), 1, -1, num_heads, self.spec.head_size)
        return self.graph.transpose(y, 0, 2, 1, 3)

    def _rotate(self, x: str) -> str:
        """Rotary positions; channel i pairs with i + S/2."""
        return self.graph.op("RotaryEmbedding", x, self.cos, self.sin)

    def _write(self, layer: int, key: str, new: str) -> str:
        """Return the cache with the new rows in it, (1, K, M, S), declared as input and output."""
        graph = self.graph
        shape = (1, self.spec.num_kv_heads, "M", self.spec.head_size)
        past = graph.input(f"past_{key}_{layer}", shape)
        # TensorRT writes in place only where the write itself is the graph's output.
        present = graph.op("TensorScatter", past, new, self.start, called=f"present_{key}_{layer}", axis=-2)
        graph.output(present, present, shape)
        return present
