"""The decoder as an ONNX graph, in three forms that differ in how keys and values are kept.

- append: takes the past keys and values token-major and gives only the new ones, so a runtime that binds `new` right
  behind `past` in one buffer appends without a copy. Query heads are folded into rows of their kv head.
- in place: takes a cache of fixed size and where to write in it, and gives the same cache; a runtime binds both to one
  address. Attention, norms and rotation are ONNX's own operators, which TensorRT maps onto its kernels.
- overlap: for ONNX Runtime alone, see `overlap.py`.

Rotary angles and the mask are inputs: the graph holds no length. Rows of activations stay two-dimensional up to the
attention itself, since TensorRT leaves a four-bit weight outside its GEMM where the input has three dimensions.

Shapes: L tokens in this call, T past tokens, M = T + L, or the cache's size in place, R tokens whose logits are wanted,
D decoder width, A query heads, K kv heads, Q = A / K, S head size, V vocabulary.
"""

from __future__ import annotations

from nvila_ros.export.graph import ORT, GraphBuilder, GraphForm, Weights
from nvila_ros.export.overlap import draw_overlap
from nvila_ros.models.shapes import EMBEDDING, HEAD
from nvila_ros.models.spec import DecoderSpec

NUM_TOP = 64
"""Best logits that a graph for TensorRT gives sorted, so that the host need not fetch the whole vocabulary."""


def draw_decoder(spec: DecoderSpec, weights: Weights, form: GraphForm = ORT) -> GraphBuilder:
    """Draw `embeds` (L, D) and the past to `logits` (R, V) float32 of the tokens `rows`, and what is new of the past.

    Inputs beside: `rows` (R,) int64, which of the L tokens logits are wanted of. Append has `cos` and `sin` (L, S), an
    additive `mask` (L, M), and `past_k_0`... (T, K, S), and gives `new_k_0`... (L, K, S). In place has `cos` and `sin`
    (1, L, S/2), `mask` (L, M) bool that is true where a token may look, `start` (1,) int64 that is T, and `past_k_0`...
    (1, K, M, S), and gives `present_k_0`... alike; `start` + L must not exceed M, which no runtime checks. Overlap has
    `embeds` (1, L, D) and what `draw_overlap` tells. In float16 there are also `top_logits` float32 and `top_ids`
    int64, (R, 64) or (R, V), best first.
    """
    pen = GraphBuilder("decoder", form)
    if form.decoder == "overlap":
        rows = pen.input("rows", ("R",), "int64")
        normed = pen.op("Gather", draw_overlap(pen, spec, weights), rows, axis=1)
        _head(pen, spec, weights, pen.reshape(normed, -1, spec.width))
        return pen
    x = pen.input("embeds", ("L", spec.width))
    attend = _InPlace(pen, spec, weights) if form.decoder == "in_place" else _Append(pen, spec, weights)
    for i in range(spec.num_layers):
        name = f"llm.model.layers.{i}"
        normed = pen.rms_norm(x, f"{name}.input_layernorm", weights, spec.norm_eps)
        x = pen.op("Add", x, attend.draw(i, normed))
        normed = pen.rms_norm(x, f"{name}.post_attention_layernorm", weights, spec.norm_eps)
        gate = pen.silu(pen.linear(normed, f"{name}.mlp.gate_proj", weights))
        hidden = pen.op("Mul", gate, pen.linear(normed, f"{name}.mlp.up_proj", weights))
        x = pen.op("Add", x, pen.linear(hidden, f"{name}.mlp.down_proj", weights))
    wanted = pen.op("Gather", x, pen.input("rows", ("R",), "int64"), axis=0)  # (R, D)
    _head(pen, spec, weights, pen.rms_norm(wanted, "llm.model.norm", weights, spec.norm_eps))
    return pen


def _head(pen: GraphBuilder, spec: DecoderSpec, weights: Weights, normed: str) -> None:
    """Give the logits of the wanted tokens, (R, D). A head that is quantized beside a tied table has lm_head's name."""
    head = HEAD if HEAD in weights else EMBEDDING
    logits = pen.cast(pen.matmul(normed, head, weights[head]), "float32")
    pen.output(logits, "logits", ("R", spec.vocab_size), "float32")
    if pen.form.dtype == "float16":
        count = min(NUM_TOP, spec.vocab_size)
        top = pen.op("TopK", logits, pen.ints(count), num_outputs=2, axis=-1)
        pen.output(top, "top_logits", ("R", count), "float32")
        pen.output(f"{top}:1", "top_ids", ("R", count), "int64")


class _Append:
    """Attention over past and new rows, the query heads of one kv head folded into rows: keys are never repeated."""

    def __init__(self, pen: GraphBuilder, spec: DecoderSpec, weights: Weights) -> None:
        self.pen, self.spec, self.weights = pen, spec, weights
        self.cos, self.sin = (pen.input(name, ("L", spec.head_size)) for name in ("cos", "sin"))
        mask = pen.input("mask", ("L", "M"))
        # One row for each row of the scores: TensorRT fuses an attention whose mask is only added to it.
        self.mask = pen.op("Concat", *[mask] * (spec.num_heads // spec.num_kv_heads), axis=0)  # (Q*L, M)

    def draw(self, layer: int, x: str) -> str:
        """Return the attention's output, (L, D)."""
        pen, s, num_kv = self.pen, self.spec.head_size, self.spec.num_kv_heads
        rows = self.spec.num_heads // num_kv
        name = f"llm.model.layers.{layer}.self_attn"
        q = pen.reshape(pen.linear(x, f"{name}.q_proj", self.weights), -1, self.spec.num_heads, s)
        q = pen.op("Mul", self._rotate(q), pen.scalar(s**-0.5))
        k, v = (self._append_past(layer, key, x) for key in ("k", "v"))
        q = pen.transpose(pen.reshape(q, -1, num_kv, rows, s), 1, 2, 0, 3)  # (K, Q, L, S)
        scores = pen.op("MatMul", pen.reshape(q, num_kv, -1, s), pen.transpose(k, 1, 2, 0))  # (K, Q*L, M)
        share = pen.op("Softmax", pen.op("Add", scores, self.mask), axis=-1)
        mixed = pen.op("MatMul", share, pen.transpose(v, 1, 0, 2))  # (K, Q*L, S)
        mixed = pen.transpose(pen.reshape(mixed, num_kv, rows, -1, s), 2, 0, 1, 3)  # (L, K, Q, S)
        return pen.linear(pen.reshape(mixed, -1, self.spec.width), f"{name}.o_proj", self.weights)

    def _append_past(self, layer: int, key: str, x: str) -> str:
        """Return all keys or values, (M, K, S), and declare the new ones as an output."""
        pen, num_kv, s = self.pen, self.spec.num_kv_heads, self.spec.head_size
        new = pen.linear(x, f"llm.model.layers.{layer}.self_attn.{key}_proj", self.weights)
        new = pen.reshape(new, -1, num_kv, s)
        if key == "k":
            new = self._rotate(new)
        past = pen.input(f"past_{key}_{layer}", ("T", num_kv, s))
        pen.output(new, f"new_{key}_{layer}", ("L", num_kv, s))
        return pen.op("Concat", past, new, axis=0)

    def _rotate(self, x: str) -> str:
        """Rotary positions on (L, heads, S); channel i pairs with i + S/2."""
        pen, s = self.pen, self.spec.head_size
        first = pen.op("Slice", x, pen.ints(0), pen.ints(s // 2), pen.ints(2))
        second = pen.op("Slice", x, pen.ints(s // 2), pen.ints(s), pen.ints(2))
        turned = pen.op("Concat", pen.op("Neg", second), first, axis=2)
        along, across = (pen.op("Unsqueeze", table, pen.ints(1)) for table in (self.cos, self.sin))
        return pen.op("Add", pen.op("Mul", x, along), pen.op("Mul", turned, across))


class _InPlace:
    """Attention over a cache of fixed size, into which the new rows are written first."""

    def __init__(self, pen: GraphBuilder, spec: DecoderSpec, weights: Weights) -> None:
        self.pen, self.spec, self.weights = pen, spec, weights
        self.cos, self.sin = (pen.input(name, (1, "L", spec.head_size // 2)) for name in ("cos", "sin"))
        self.mask = pen.input("mask", ("L", "M"), "bool")
        self.start = pen.input("start", (1,), "int64")

    def draw(self, layer: int, x: str) -> str:
        """Return the attention's output, (L, D)."""
        pen, spec = self.pen, self.spec
        name = f"llm.model.layers.{layer}.self_attn"
        q = self._rotate(self._heads(x, f"{name}.q_proj", spec.num_heads))
        k = self._write(layer, "k", self._rotate(self._heads(x, f"{name}.k_proj", spec.num_kv_heads)))
        v = self._write(layer, "v", self._heads(x, f"{name}.v_proj", spec.num_kv_heads))
        mixed = pen.op("Attention", q, k, v, self.mask, scale=spec.head_size**-0.5)  # (1, A, L, S)
        mixed = pen.reshape(pen.transpose(mixed, 0, 2, 1, 3), -1, spec.width)
        return pen.linear(mixed, f"{name}.o_proj", self.weights)

    def _heads(self, x: str, name: str, num_heads: int) -> str:
        """Return (1, heads, L, S)."""
        y = self.pen.reshape(self.pen.linear(x, name, self.weights), 1, -1, num_heads, self.spec.head_size)
        return self.pen.transpose(y, 0, 2, 1, 3)

    def _rotate(self, x: str) -> str:
        """Rotary positions; channel i pairs with i + S/2."""
        return self.pen.op("RotaryEmbedding", x, self.cos, self.sin)

    def _write(self, layer: int, key: str, new: str) -> str:
        """Return the cache with the new rows in it, (1, K, M, S), declared as input and output."""
        pen = self.pen
        shape = (1, self.spec.num_kv_heads, "M", self.spec.head_size)
        past = pen.input(f"past_{key}_{layer}", shape)
        # TensorRT writes in place only where the write itself is the graph's output.
        present = pen.op("TensorScatter", past, new, self.start, called=f"present_{key}_{layer}", axis=-2)
        pen.output(present, present, shape)
        return present
