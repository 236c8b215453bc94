"""What is read of a prompt, and what is not: against reading all of it."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvila_ros.generation import prefix
from nvila_ros.generation.prefix import PrefixCache, identify, shared_length
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.prompt.chat import PLACEHOLDER
from nvila_ros.runtime.torch_engine import TorchEngine
from tests.golden_cases import CHECKPOINT, assert_near

PROMPTS = st.lists(st.integers(0, 2), min_size=2, max_size=24)  # few ids: prompts begin alike


@functools.cache
def engine() -> TorchEngine:
    return TorchEngine(open_checkpoint(CHECKPOINT))


@settings(max_examples=40, deadline=None)
@given(prompts=st.lists(PROMPTS, min_size=1, max_size=6), num_trunks=st.integers(0, 3), chunk=st.integers(1, 9))
def test_any_prompt_after_any_others_gets_what_it_gets_alone(
    prompts: list[list[int]], num_trunks: int, chunk: int
) -> None:
    kept = PrefixCache(engine(), num_trunks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix, "PREFILL_CHUNK", chunk)
        patch.setattr(prefix, "ROUND_ROWS", 4)
        for ids in prompts:
            ids_L = np.array(ids)
            keys_L2 = identify(ids_L, np.empty((0, 8), np.float32))
            known = kept.find(keys_L2[:-1])
            with kept.take(keys_L2[:-1], len(ids)) as trunk:
                assert trunk.length == known
                logits_V = trunk.prefill(engine().embed(ids_L), keys_L2, lambda: None)

            want = engine().forward(engine().embed(ids_L), engine().new_cache(len(ids)))
            assert_near("logits", logits_V, want, 1e-4)
            assert len(kept) <= num_trunks


@given(one=PROMPTS, other=PROMPTS)
def test_shared_length_is_that_of_the_common_beginning(one: list[int], other: list[int]) -> None:
    naive = 0
    while naive < min(len(one), len(other)) and one[naive] == other[naive]:
        naive += 1

    got = shared_length(*(identify(np.array(ids), np.empty((0, 8), np.float32)) for ids in (one, other)))

    assert got == naive


def test_visual_tokens_are_told_apart_by_every_bit() -> None:
    ids_L = np.array([1, PLACEHOLDER, PLACEHOLDER, 2])
    visual_GD = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    other_GD = visual_GD.copy()
    other_GD[1, 7] = np.nextafter(other_GD[1, 7], np.float32(9))

    assert shared_length(identify(ids_L, visual_GD), identify(ids_L, other_GD)) == 2
    assert shared_length(identify(ids_L, visual_GD), identify(ids_L, visual_GD.copy())) == 4


def test_call_that_fails_leaves_no_row_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = PrefixCache(engine(), 1)
    ids_L = np.arange(10)
    keys_L2 = identify(ids_L, np.empty((0, 8), np.float32))
    monkeypatch.setattr(prefix, "PREFILL_CHUNK", 4)
    checks = iter([None, None])

    with pytest.raises(StopIteration), kept.take(keys_L2, 10) as trunk:
        trunk.prefill(engine().embed(ids_L), keys_L2, lambda: next(checks))

    assert kept.find(keys_L2) == trunk.cache.length == 8


def test_rows_without_identity_are_gone_after_use() -> None:
    kept = PrefixCache(engine(), 1)
    ids_L = np.arange(6)
    keys_L2 = identify(ids_L, np.empty((0, 8), np.float32))

    with kept.take(keys_L2, 10) as trunk:
        trunk.prefill(engine().embed(ids_L), keys_L2, lambda: None)
        engine().forward(engine().embed(ids_L[:3]), trunk.cache)

    assert trunk.cache.length == trunk.length == 6


def test_prompt_that_shares_little_takes_the_oldest_trunk_and_leaves_the_others() -> None:
    kept = PrefixCache(engine(), 2)
    texts = [np.array([0, *range(10 * k, 10 * k + 9)]) for k in range(1, 4)]
    for ids_L in [*texts[:2], texts[0], texts[2]]:  # the second is the one not used for longest
        keys_L2 = identify(ids_L, np.empty((0, 8), np.float32))
        with kept.take(keys_L2, 10) as trunk:
            trunk.prefill(engine().embed(ids_L), keys_L2, lambda: None)

    known = [kept.find(identify(ids_L, np.empty((0, 8), np.float32))) for ids_L in texts]

    assert known == [10, 1, 10]
