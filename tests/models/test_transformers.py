"""The modules against transformers' own, on random small configurations."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from nvila_ros.models.decoder import Decoder
from nvila_ros.models.siglip import VisionTower
from nvila_ros.models.spec import DecoderSpec, VisionSpec
from tests.golden_cases import assert_near

ATOL = 1e-5
SETTINGS = settings(max_examples=12, deadline=None)


@SETTINGS
@given(
    heads=st.sampled_from([1, 2, 4]),
    head_size=st.sampled_from([8, 16, 24]),
    layers=st.integers(1, 3),
    grid=st.integers(1, 4),
    mlp=st.sampled_from([32, 72]),
    seed=st.integers(0, 99),
)
def test_vision_tower_gives_the_last_hidden_states_but_one(
    heads: int, head_size: int, layers: int, grid: int, mlp: int, seed: int
) -> None:
    torch.manual_seed(seed)
    width = heads * head_size
    config = SiglipVisionConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=mlp,
        image_size=14 * grid,
        patch_size=14,
        vision_use_head=False,
        attn_implementation="eager",
    )
    theirs = SiglipVisionModel(config).eval()
    spec = VisionSpec(
        width=width,
        num_layers=layers,
        num_heads=heads,
        mlp_width=mlp,
        image_px=14 * grid,
        patch_px=14,
        num_live_layers=layers - 1,
    )
    ours = VisionTower(spec)
    state = {key.removeprefix("vision_model."): value for key, value in theirs.state_dict().items()}
    dead = ours.load_state_dict(state, strict=False)
    assert not dead.missing_keys
    tile_NCHW = torch.rand(2, 3, 14 * grid, 14 * grid) * 2 - 1

    with torch.no_grad():
        want = theirs(tile_NCHW, output_hidden_states=True).hidden_states[-2]
        assert_near("features", ours(tile_NCHW).numpy(), want.numpy(), ATOL)


@SETTINGS
@given(
    kv_heads=st.sampled_from([1, 2]),
    groups=st.sampled_from([1, 2, 3]),
    head_size=st.sampled_from([8, 16]),
    layers=st.integers(1, 3),
    is_tied=st.booleans(),
    theta=st.sampled_from([1e4, 1e6]),
    length=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_decoder_gives_qwen2_logits(
    kv_heads: int, groups: int, head_size: int, layers: int, is_tied: bool, theta: float, length: int, seed: int
) -> None:
    torch.manual_seed(seed)
    heads = kv_heads * groups
    config = Qwen2Config(
        hidden_size=heads * head_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=40,
        vocab_size=50,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        tie_word_embeddings=is_tied,
        attn_implementation="eager",
    )
    theirs = Qwen2ForCausalLM(config).eval()
    spec = DecoderSpec(
        width=heads * head_size,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        mlp_width=40,
        vocab_size=50,
        rope_theta=theta,
        is_tied=is_tied,
        max_positions=64,
    )
    ours = Decoder(spec)
    state = theirs.state_dict()
    if is_tied:
        state.pop("lm_head.weight", None)
    ours.load_state_dict(state)
    ids_BL = torch.randint(0, 50, (2, length))

    with torch.no_grad():
        want = theirs(ids_BL).logits
        assert_near("logits", ours.head(ours(ours.embed(ids_BL))).numpy(), want.numpy(), ATOL)
