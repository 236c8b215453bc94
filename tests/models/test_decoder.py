"""The decoder's shorter ways, each against the plain one."""

import pytest
import torch
from torch.nn import functional

from nvila_ros.errors import ShapeError
from nvila_ros.models.decoder import Decoder, KvCache, attend, rotary_tables
from nvila_ros.models.spec import DecoderSpec

SPEC = DecoderSpec(
    width=32,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    mlp_width=48,
    vocab_size=8,
    rope_theta=100.0,
    is_tied=True,
    max_positions=64,
)


def _some_sight(batch: int, tokens: int) -> torch.Tensor:
    """Which tokens each one sees, (B, 1, L, L): itself and some before it, others in each sample."""
    sees_BLL = (torch.rand(batch, tokens, tokens) < 0.5) | torch.eye(tokens, dtype=torch.bool)
    return sees_BLL.tril()[:, None]


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_attention_that_learns_is_torchs_there_and_back(dtype: torch.dtype, atol: float) -> None:
    torch.manual_seed(0)
    sees = _some_sight(3, 19)
    back = torch.randn(3, 4, 19, 8, dtype=dtype)
    qkv = [torch.randn(3, heads, 19, 8, dtype=dtype).requires_grad_() for heads in (4, 2, 2)]

    learned = attend(*qkv, sees)

    plain = functional.scaled_dot_product_attention(*qkv, attn_mask=sees, enable_gqa=True)
    assert torch.allclose(learned, plain, atol=atol)
    gradients = (torch.autograd.grad(each, qkv, back) for each in (learned, plain))
    for of_learned, of_plain in zip(*gradients, strict=True):
        assert torch.allclose(of_learned, of_plain, atol=atol, rtol=0.02)


def test_wanted_rows_of_a_layer_are_those_of_all_there_and_back() -> None:
    torch.manual_seed(0)
    layer = Decoder(SPEC).model["layers"][0]
    x_BLD = torch.randn(2, 11, 32, requires_grad=True)
    positions_B1L = torch.stack([torch.arange(11), torch.arange(11) // 2])[:, None]
    rotary, sees = rotary_tables(SPEC, positions_B1L), _some_sight(2, 11)
    wanted_BT = torch.tensor([[10, 3, 3], [0, 7, 2]])

    few = layer(x_BLD, *rotary, None, sees, wanted_BT)
    all_of = layer(x_BLD, *rotary, None, sees)
    same = torch.stack([rows[wanted] for rows, wanted in zip(all_of, wanted_BT, strict=True)])

    assert torch.allclose(few, same, atol=1e-6)
    back = torch.randn_like(few)
    gradients = (torch.autograd.grad(each, (x_BLD, *layer.parameters()), back) for each in (few, same))
    for of_few, of_same in zip(*gradients, strict=True):
        assert torch.allclose(of_few, of_same, atol=1e-5)


def test_cache_refuses_more_tokens_than_it_holds() -> None:
    cache = KvCache(SPEC, capacity=3)
    rows = torch.zeros(1, SPEC.num_kv_heads, 4, SPEC.head_size)

    with pytest.raises(ShapeError, match="holds 3 tokens, got 4; give it a larger capacity"):
        cache.append(0, rows, rows)


def test_wanted_tokens_without_a_mask_are_refused() -> None:
    decoder = Decoder(SPEC)
    tables = rotary_tables(SPEC, torch.arange(2))

    with pytest.raises(ShapeError, match="give sees_LM"):
        decoder.model.layers[0](torch.zeros(1, 2, SPEC.width), *tables, None, None, torch.zeros(1, 1, dtype=torch.long))
