"""Every stage against tensors that NVLabs/VILA's own code computed."""

import numpy as np
import pytest
import torch

from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.qwen2 import KvCache
from nvila_ros.pipeline import embed_prompt
from nvila_ros.preprocess.tiles import frame_tile, normalize_tiles
from nvila_ros.prompt.chat import PLACEHOLDER, Media, build_prompt
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.torch_engine import TorchEngine, load_model
from tests.golden_cases import CASES, CHECKPOINT, assert_near, load_case

ATOL = 1e-4


@pytest.fixture(scope="module")
def model() -> Nvila:
    return load_model(open_checkpoint(CHECKPOINT))


@pytest.mark.parametrize("name", CASES)
def test_every_stage_matches_the_reference(name: str, model: Nvila) -> None:
    frames, question, want = load_case(name)
    engine = TorchEngine(open_checkpoint(CHECKPOINT))
    media, visual_GD = Media(), np.empty((0, 64), np.float32)
    if frames:
        tile_NCHW = normalize_tiles([frame_tile(frame.image, 112) for frame in frames])
        if "pixel_values" in want:
            assert_near("pixels", tile_NCHW, want["pixel_values"], 0)
        feat_NPE = engine.vision(tile_NCHW)
        assert_near("features", feat_NPE, want["vision_features"], ATOL)
        visual_NGD = engine.project(feat_NPE)
        assert_near("visual tokens", visual_NGD, want["projector_out"], ATOL)
        visual_GD = visual_NGD.reshape(-1, visual_NGD.shape[-1])
        media = Media((visual_NGD.shape[1],) * len(frames), has_text_newline=len(frames) == 1)

    ids_L = build_prompt(ChatTokenizer.from_folder(CHECKPOINT / "llm"), question, media)
    embeds_LD = embed_prompt(engine, ids_L, visual_GD)
    logits_BLV = model.llm.head(model.llm(torch.from_numpy(embeds_LD)[None]))

    assert len(ids_L) == want["inputs_embeds"].shape[1]
    assert (ids_L == PLACEHOLDER).sum() == len(visual_GD)
    assert_near("embeddings", embeds_LD, want["inputs_embeds"][0], ATOL)
    assert_near("logits", logits_BLV.numpy(), want["logits"], ATOL)


@pytest.mark.parametrize("name", CASES)
def test_greedy_ids_match_the_reference(name: str, model: Nvila) -> None:
    want = load_case(name)[2]
    cache = KvCache(model.spec.decoder, capacity=256)
    embeds_BLD = torch.from_numpy(want["inputs_embeds"])

    ids = []
    for _ in range(want["greedy_ids"].shape[1]):
        token_BL = model.llm.head(model.llm(embeds_BLD, cache)[:, -1:]).argmax(-1)
        embeds_BLD = model.llm.embed(token_BL)
        ids.append(int(token_BL))

    assert ids == want["greedy_ids"][0].tolist()
