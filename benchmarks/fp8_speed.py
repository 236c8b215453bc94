"""How long maps and whole decoder layers of NVILA's sizes take forward and backward, in bf16 and in FP8, on a GPU.

Times are medians of CUDA events around single calls. TFLOP/s count the products alone: 6 T K N for a map forward and
backward.
"""

from __future__ import annotations

import itertools
import statistics
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from nvila_ros.models.decoder import DecoderLayer, rotary_tables
from nvila_ros.models.spec import DecoderSpec
from nvila_ros.tools.options import wide_console
from nvila_ros.training.fp8 import Fp8AdamW, convert_linears
from nvila_ros.training.fp8.formats import E4M3, has_fp8_products, quantize, scaled_product

TOKENS = (4096, 8192, 16384)
LAYER_TOKENS = 8192
NUM_WARM, NUM_TIMED = 3, 10


def spec_of(width: int, num_heads: int, num_kv_heads: int, mlp_width: int) -> DecoderSpec:
    """Return what a decoder layer needs."""
    return DecoderSpec(
        width=width,
        num_layers=1,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        mlp_width=mlp_width,
        vocab_size=16,
        rope_theta=1e6,
        is_tied=True,
        max_positions=32768,
    )


SPECS = {"NVILA-Lite-2B": spec_of(1536, 12, 2, 8960), "NVILA-8B": spec_of(3584, 28, 4, 18944)}


def measure_speed(*, use_compiler: bool) -> list[dict[str, Any]]:
    """Print a table and return its rows."""
    assert has_fp8_products(torch.device("cuda")), "this GPU multiplies no FP8; measure on Ada, Hopper or later"
    rows = []
    for name, spec in SPECS.items():
        for row in itertools.chain(measure_maps(spec, use_compiler), measure_layers(spec, use_compiler)):
            rows.append({"model": name, **row})
            print("speed", rows[-1], flush=True)
        rows.append({"model": name, **measure_steps(spec)})
        torch.cuda.empty_cache()
    wide_console().print(as_table(rows))
    return rows


def measure_maps(spec: DecoderSpec, use_compiler: bool) -> Iterator[dict[str, Any]]:
    """Yield times of the product alone and of the MLP's widest map forward and backward."""
    num_in, num_out = spec.width, spec.mlp_width
    for tokens in TOKENS:
        work = 2e-12 * tokens * num_in * num_out
        yield {"what": "product alone", "tokens": tokens, "tflop": work, **time_product(tokens, num_in, num_out)}
        x, grad = (torch.randn(tokens, width, dtype=torch.bfloat16, device="cuda") for width in (num_in, num_out))
        maps = {name: new_map(num_in, num_out) for name in ("bf16", "fp8")}
        convert_linears(maps["fp8"])
        row = {"what": "map", "tokens": tokens, "tflop": 3 * work}
        yield row | time_both(maps, x.requires_grad_(), grad, use_compiler and tokens == LAYER_TOKENS)


def time_product(tokens: int, num_in: int, num_out: int) -> dict[str, float]:
    """Return the times of one product whose factors are at hand in either precision."""
    x, weight = (torch.randn(rows, num_in, dtype=torch.bfloat16, device="cuda") for rows in (tokens, num_out))
    x8, weight8 = quantize(x, E4M3), quantize(weight, E4M3)
    weight8 = weight8._replace(codes=weight8.codes.t())
    return {
        "bf16_ms": time_ms(lambda: x @ weight.t()),
        "fp8_ms": time_ms(lambda: scaled_product(x8, weight8, torch.bfloat16, is_fast=True)),
        "fp8_exact_ms": time_ms(lambda: scaled_product(x8, weight8, torch.bfloat16, is_fast=False)),
    }


def measure_layers(spec: DecoderSpec, use_compiler: bool) -> Iterator[dict[str, Any]]:
    """Yield times and kept bytes of a whole layer forward and backward."""
    tokens, width = LAYER_TOKENS, spec.width
    with torch.device("cuda"):
        tables = rotary_tables(spec, torch.arange(tokens))
        layers = {name: LayerWithTables(DecoderLayer(spec, 0).bfloat16(), tables) for name in ("bf16", "fp8")}
        x, grad = (torch.randn(1, tokens, width, dtype=torch.bfloat16) for _ in range(2))
    x.requires_grad_()
    convert_linears(layers["fp8"])
    weights = sum(p.numel() for name, p in layers["bf16"].named_parameters() if name.endswith("proj.weight"))
    attention = 7e-12 * tokens**2 * width  # two products forward and five backward, half of each masked
    row: dict[str, Any] = {"what": "layer", "tokens": tokens, "tflop": 6e-12 * tokens * weights + attention}
    row |= {f"{name}_kept_bytes": kept_bytes(layer, x) for name, layer in layers.items()}
    yield row | time_both(layers, x, grad, use_compiler)


def measure_steps(spec: DecoderSpec) -> dict[str, Any]:
    """Return the times of an optimizer's step on the weights of one MLP."""
    row: dict[str, Any] = {"what": "optimizer", "tokens": 0, "tflop": 0.0}
    for name, optimizer_class in (("bf16", torch.optim.AdamW), ("fp8", Fp8AdamW)):
        weights = [torch.zeros(spec.mlp_width, spec.width, device="cuda") for _ in range(3)]
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        row[f"{name}_ms"] = time_ms(optimizer_class(weights, lr=1e-3).step)
    return row


class LayerWithTables(nn.Module):
    """A layer with its rotary tables."""

    def __init__(self, layer: DecoderLayer, tables: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.layer, self.tables = layer, tables

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer returns."""
        return self.layer(x, *self.tables, None)


def new_map(num_in: int, num_out: int) -> nn.Sequential:
    """Return a map without a bias."""
    return nn.Sequential(nn.Linear(num_in, num_out, bias=False, dtype=torch.bfloat16, device="cuda"))


def time_both(modules: dict[str, Any], x: Tensor, grad: Tensor, use_compiler: bool) -> dict[str, Any]:
    """Return the times of both precisions, and as torch compiles them where it is asked to and can."""
    figures: dict[str, Any] = {}
    for name, module in modules.items():
        figures[f"{name}_ms"] = time_ms(lambda module=module: step(module, x, grad))
        if use_compiler:
            compiled = torch.compile(module)
            try:
                figures[f"{name}_compiled_ms"] = time_ms(lambda compiled=compiled: step(compiled, x, grad))
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:  # no C compiler or no Triton, say
                figures[f"{name}_compiled_error"] = f"{type(error).__name__}: {error}"[:300]
            torch._dynamo.reset()
    return figures


def step(module: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> None:
    """Go forward and backward once; gradients of weights are dropped before, as a step does it."""
    for parameter in module.parameters():  # type: ignore[attr-defined]
        parameter.grad = None
    x.grad = None
    module(x).backward(grad)


def time_ms(call: Callable[[], Any]) -> float:
    """Return the median time of a call on the GPU."""
    for _ in range(NUM_WARM):
        call()
    times = []
    for _ in range(NUM_TIMED):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def kept_bytes(module: nn.Module, x: Tensor) -> int:
    """Return by how much the GPU's allocated memory grows over a forward pass, without its output."""
    module(x)  # workspaces of the libraries stay
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    y = module(x)
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated() - before - y.untyped_storage().nbytes()


def as_table(rows: list[dict[str, Any]]) -> Table:
    """Return times, TFLOP/s, and how much faster FP8 is."""
    table = Table("model", "what", "tokens", "bf16 ms", "fp8 ms", "TFLOP/s bf16", "fp8", "faster", "compiled", "kept")
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        bf16, fp8 = row["bf16_ms"], row["fp8_ms"]
        rates = [f"{1e3 * row['tflop'] / ms:.0f}" for ms in (bf16, fp8)]
        compiled = "-"
        if "fp8_compiled_ms" in row and "bf16_compiled_ms" in row:
            compiled = f"{row['bf16_compiled_ms']:.2f} / {row['fp8_compiled_ms']:.2f}"
        kept = f"{row['fp8_kept_bytes'] / row['bf16_kept_bytes']:.2f}" if "fp8_kept_bytes" in row else "-"
        times = [f"{bf16:.2f}", f"{fp8:.2f}"]
        table.add_row(
            row["model"], row["what"], str(row["tokens"]), *times, *rates, f"{bf16 / fp8:.2f}", compiled, kept
        )
    return table
