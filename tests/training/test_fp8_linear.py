"""Maps, norms and gates in FP8: held against the same modules in float32, against torchao, and counted in bytes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nvila_ros.errors import ConfigError
from nvila_ros.models.decoder import Decoder, DecoderLayer, GatedMlp, rotary_tables
from nvila_ros.models.spec import DecoderSpec
from nvila_ros.training.fp8 import convert_linears, linear
from nvila_ros.training.fp8.formats import E4M3, E5M2, quantize
from nvila_ros.training.fp8.linear import Fp8Linear
from nvila_ros.training.fp8.nonlinear import Fp8Mlp, Fp8RmsNorm
from nvila_ros.training.tiny import new_model

pytestmark = pytest.mark.slow

SPEC = DecoderSpec(
    width=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    mlp_width=128,
    vocab_size=96,
    rope_theta=1e4,
    is_tied=True,
    max_positions=128,
)


def converted(module: nn.Module) -> nn.Module:
    module = copy.deepcopy(module)
    convert_linears(module)
    return module


def gradients(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The output, the input's gradient and those of all parameters, of a loss that weighs every output differently."""
    x = x.clone().requires_grad_()
    y = module(x)
    generator = torch.Generator().manual_seed(7)
    (y.float() * torch.randn(y.shape, generator=generator)).sum().backward()
    return y.detach(), x.grad, {name: parameter.grad for name, parameter in module.named_parameters()}


def relative(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    codes, scale = quantize(x, dtype)
    return codes.double() * scale.double()


@pytest.mark.parametrize("shape", [(32, 48), (3, 7, 48), (48,), (1, 48)])
def test_products_are_those_of_rounded_factors(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    plain, x = nn.Linear(48, 80), torch.randn(shape)
    told = torch.randn(*shape[:-1], 80, generator=torch.Generator().manual_seed(7))

    y, grad_x, grads = gradients(converted(plain), x)

    x_TK, told_TN = rounded(x, E4M3).view(-1, 48), rounded(told, E5M2).view(-1, 80)
    weight_NK = rounded(plain.weight.detach(), E4M3)
    assert torch.allclose(y.double(), (x_TK @ weight_NK.T + plain.bias.double()).view(y.shape), atol=1e-4)
    assert torch.allclose(grad_x.double(), (told_TN @ weight_NK).view(shape), atol=1e-4)
    assert torch.allclose(grads["weight"].double(), told_TN.T @ x_TK, atol=1e-4)
    assert torch.allclose(grads["bias"], told.view(-1, 80).sum(0), atol=1e-4)


def test_agrees_with_torchao() -> None:
    """Another implementation, with scales that are no powers of two unless it is told so."""
    float8 = pytest.importorskip("torchao.float8")
    torch.manual_seed(0)
    plain, x = nn.Linear(64, 48), torch.randn(40, 64)
    config = float8.Float8LinearConfig(emulate=True, round_scales_to_power_of_2=True)
    theirs = float8.convert_to_float8_training(nn.Sequential(copy.deepcopy(plain)), config=config)

    got, want = gradients(converted(plain), x), gradients(theirs, x)

    assert relative(got[0], want[0]) < 1e-6
    assert relative(got[1], want[1]) < 1e-6
    assert relative(got[2]["weight"], want[2]["0.weight"]) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types_are_those_of_the_plain_map(dtype: torch.dtype) -> None:
    plain, x = nn.Linear(32, 16).to(dtype), torch.randn(5, 32).to(dtype)

    got, want = gradients(converted(plain), x), gradients(plain, x)

    assert (got[0].dtype, got[1].dtype) == (want[0].dtype, want[1].dtype)
    assert {name: grad.dtype for name, grad in got[2].items()} == {name: grad.dtype for name, grad in want[2].items()}


def test_autocast_chooses_the_type_of_the_output_as_it_does_for_the_plain_map() -> None:
    plain, x = nn.Linear(32, 16), torch.randn(5, 32)

    with torch.autocast("cpu", torch.bfloat16):
        got, want = converted(plain)(x), plain(x)

    assert got.dtype == want.dtype == torch.bfloat16
    assert relative(got, want) < 0.06


@pytest.fixture
def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(SPEC)


def test_decoder_in_fp8_has_about_the_gradients_of_the_float_one(decoder: Decoder) -> None:
    embeds_BLD = torch.randn(2, 21, SPEC.width)

    got, want = gradients(converted(decoder), embeds_BLD), gradients(decoder, embeds_BLD)

    assert relative(got[0], want[0]) < 0.06
    assert relative(got[1], want[1]) < 0.15
    for name, grad in want[2].items():
        if grad is not None:  # the table of embeddings is not read here
            assert relative(got[2][name], grad) < 0.25, name
            assert torch.cosine_similarity(got[2][name].flatten(), grad.flatten(), dim=0) > 0.97, name


def test_norm_and_gate_give_the_bits_they_gave_and_gradients_of_rounded_inputs() -> None:
    torch.manual_seed(0)
    norm, x = nn.RMSNorm(64, eps=1e-6), torch.randn(6, 64) * torch.logspace(-2, 3, 64)
    nn.init.uniform_(norm.weight, 0.5, 2)
    fp8_norm = copy.deepcopy(norm)
    fp8_norm.__class__ = Fp8RmsNorm

    got, want = gradients(fp8_norm, x), gradients(norm, x)

    assert torch.equal(got[0], want[0])
    rounded_x = (rounded_groups(x)).float()
    assert relative(got[1], gradients(norm, rounded_x)[1]) < 1e-5
    norm.zero_grad()
    assert relative(got[2]["weight"], gradients(norm, rounded_x)[2]["weight"]) < 1e-5


def test_gate_of_the_mlp_has_the_gradients_of_its_rounded_halves() -> None:
    torch.manual_seed(0)
    mlp = GatedMlp(SPEC)
    mlp.gate_proj, mlp.up_proj, mlp.down_proj = nn.Identity(), Doubled(), nn.Identity()
    fp8_mlp = copy.deepcopy(mlp)
    fp8_mlp.__class__ = Fp8Mlp
    x = torch.randn(4, 32) * 5

    got, want = gradients(fp8_mlp, x), gradients(mlp, x)

    assert torch.equal(got[0], want[0])
    assert relative(got[1], gradients(mlp, rounded_groups(x).float())[1]) < 1e-5


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def rounded_groups(x: Tensor) -> Tensor:
    return torch.stack([rounded(group, E4M3) for group in x.reshape(-1, 16)]).view(x.shape)


def test_names_parameters_and_saved_states_stay_what_they_were(decoder: Decoder) -> None:
    before = dict(decoder.named_parameters())

    num_maps = convert_linears(decoder)

    assert num_maps == 7 * SPEC.num_layers
    assert {name: id(p) for name, p in decoder.named_parameters()} == {name: id(p) for name, p in before.items()}
    Decoder(SPEC).load_state_dict(decoder.state_dict())


def test_whole_embedded_model_can_be_converted() -> None:
    model = new_model(seed=0)

    assert convert_linears(model.llm) == 21
    assert convert_linears(model.vision_tower) == 30
    assert sum(isinstance(each, Fp8RmsNorm) for each in model.modules()) == 7


def test_maps_that_tensor_cores_cannot_take_stay_and_are_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    module = nn.ModuleDict({"wide": nn.Linear(32, 32), "adapter": nn.Linear(32, 8)})

    assert convert_linears(module) == 1
    assert type(module["adapter"]) is nn.Linear
    assert "a side is no multiple of 16: adapter" in caplog.text


def test_module_without_a_fitting_map_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"multiples of 16, but the module has none among its 1; train it in bf16"):
        convert_linears(nn.Sequential(nn.Linear(8, 8)))


def test_siblings_share_one_copy_and_let_it_go(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def count(x: Tensor, dtype: torch.dtype) -> Any:
        shapes.append(tuple(x.shape))
        return quantize(x, dtype)

    monkeypatch.setattr(linear, "quantize", count)
    convert_linears(decoder)
    with torch.no_grad():
        decoder(torch.randn(1, 16, SPEC.width))

    inputs = [shape for shape in shapes if shape[0] == 16]
    assert len(inputs) == 4 * SPEC.num_layers  # of queries, keys and values; output; gate and up; down
    for module in decoder.modules():
        if isinstance(module, Fp8Linear) and module.shared_input:
            assert module.shared_input.copy is module.shared_input.seen is None


def test_frozen_map_keeps_no_input_and_frozen_input_no_weight() -> None:
    module, x = converted(nn.Linear(32, 32, bias=False)), torch.randn(64, 32)

    module.weight.requires_grad_(False)
    assert saved_bytes(module, x.clone().requires_grad_(), with_weights=False) == 0
    module.weight.requires_grad_(True)
    assert saved_bytes(module, x, with_weights=True) == 64 * 32 + 4


def test_bytes_kept_for_the_backward_pass_are_those_of_the_formats(decoder: Decoder) -> None:
    t, d, f, kv, layers = 64, SPEC.width, SPEC.mlp_width, 2 * SPEC.head_size, SPEC.num_layers
    decoder.bfloat16()
    embeds_BLD = torch.randn(1, t, d, dtype=torch.bfloat16, requires_grad=True)

    plain = saved_bytes(decoder, embeds_BLD, with_weights=False)
    products_only = copy.deepcopy(decoder)
    convert_linears(products_only, keep_nonlinear=False)
    less = saved_bytes(products_only, embeds_BLD, with_weights=False)
    least = saved_bytes(converted(decoder), embeds_BLD, with_weights=False)

    inputs = t * (3 * d + f) + 4 * 4  # a byte each, of what the seven maps of a layer read, and four scales
    attention = 2 * t * (2 * d + 2 * kv) + 4 * t * SPEC.num_heads  # queries, keys, values, sums and results in bfloat16
    rotary = 2 * t * 4 * SPEC.head_size
    groups = t * (2 * d + 2 * f) * 17 // 16  # the norms' inputs and the halves of the gate
    assert least == layers * (inputs + attention + rotary + groups) + t * d * 17 // 16  # and the last norm's input
    assert least < less < plain
    assert least < 0.5 * plain


def saved_bytes(module: nn.Module, x: Tensor, *, with_weights: bool) -> int:
    """Bytes of all storages that autograd keeps from a forward pass to the backward pass."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}
    holders = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if with_weights or storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        holders.append(tensor)  # so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    return sum(kept.values())


def test_copies_of_a_converted_model_are_converted_and_apart(decoder: Decoder) -> None:
    first = converted(decoder)
    second = copy.deepcopy(first)
    x = torch.randn(1, 16, SPEC.width)

    assert torch.equal(first(x), second(x))
    maps = [next(each for each in module.modules() if isinstance(each, Fp8Linear)) for module in (first, second)]
    assert maps[0].shared_input is not maps[1].shared_input


def test_checkpointed_layers_have_the_same_gradients(decoder: Decoder) -> None:
    x = torch.randn(1, 16, SPEC.width)
    module = converted(decoder)

    plain = gradients(module, x)
    module.zero_grad()
    again = gradients(Checkpointed(module), x)

    assert torch.equal(plain[1], again[1])


class Checkpointed(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(self.module, x, use_reentrant=False)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own compiler does it
def test_compiler_takes_a_whole_layer_and_changes_no_bit() -> None:
    layer = DecoderLayer(SPEC, 0).bfloat16()
    convert_linears(layer)
    tables = rotary_tables(SPEC, torch.arange(32))
    x = torch.randn(1, 32, SPEC.width, dtype=torch.bfloat16)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)

    got, want = (gradients(WithTables(each, layer, tables), x) for each in (compiled, layer))

    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


class WithTables(nn.Module):
    def __init__(self, call: Any, layer: nn.Module, tables: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.layer, self.call, self.tables = layer, [call], tables

    def forward(self, x: Tensor) -> Tensor:
        return self.call[0](x, *self.tables, None)


def test_training_in_fp8_follows_training_in_float32(decoder: Decoder) -> None:
    """The same steps on the same tokens: losses part by little, and fall."""
    losses = {}
    for name, module in (("fp8", converted(decoder)), ("float32", copy.deepcopy(decoder))):
        losses[name] = list(train(module, 60))

    start, end = losses["float32"][0], sum(losses["float32"][-10:]) / 10
    assert end < 0.7 * start
    assert abs(sum(losses["fp8"][-10:]) / 10 - end) < 0.03 * start


def train(module: Any, num_steps: int) -> Iterator[float]:
    steps = torch.optim.AdamW(module.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_steps):
        ids_BL = torch.randint(0, 8, (4, 1), generator=generator) + torch.arange(24)  # what comes next is one more
        loss = nn.functional.cross_entropy(
            module.head(module(module.embed(ids_BL[:, :-1]))).flatten(0, 1), ids_BL[:, 1:].flatten()
        )
        steps.zero_grad()
        loss.backward()
        steps.step()
        yield loss.item()
