"""DeltaLoss: scores are what the definition says, and the choice is fair whatever the order."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.errors import CheckpointError, ConfigError
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.runtime.loading import find_checkpoint
from nvila_ros.training.conversations.bad_samples import DataError
from nvila_ros.training.conversations.forward import learned_log_probs
from nvila_ros.training.conversations.packing import join
from nvila_ros.training.conversations.planted import PlantedSpec, PlantedWorld
from nvila_ros.training.pruning import (
    Scorer,
    check_tokenizers,
    content_key,
    delta_loss,
    score_samples,
    select_top,
)
from tests.golden_cases import GOLDEN

LITE, VIDEO = GOLDEN / "lite" / "ckpt", GOLDEN / "video" / "ckpt"
shares = st.floats(0.01, 1.0)
# Few distinct scores, so that many are equal.
score_lists = st.lists(st.sampled_from([-1.5, 0.0, 0.25, 3.0]), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def scorers() -> tuple[Scorer, Scorer]:
    return Scorer(open_checkpoint(LITE)), Scorer(open_checkpoint(VIDEO))


@given(scores=score_lists, keep=shares)
def test_the_share_that_was_asked_for_is_kept_within_one(scores: list[float], keep: float) -> None:
    kept = select_top(np.array(scores), np.arange(len(scores)), keep).sum()

    assert abs(kept - keep * len(scores)) <= 1
    assert kept >= 1


@given(scores=score_lists, keep=shares, data=st.data())
def test_choice_does_not_depend_on_the_order(scores: list[float], keep: float, data: st.DataObject) -> None:
    keys = data.draw(st.permutations(range(len(scores))))
    order = data.draw(st.permutations(range(len(scores))))
    score_N, key_N = np.array(scores), np.array(keys)

    kept = set(key_N[select_top(score_N, key_N, keep)].tolist())
    shuffled = set(key_N[order][select_top(score_N[order], key_N[order], keep)].tolist())

    assert kept == shuffled


@given(scores=score_lists, keep=shares, data=st.data())
def test_nothing_left_out_is_better_than_what_is_kept(scores: list[float], keep: float, data: st.DataObject) -> None:
    score_N = np.array(scores)
    key_N = np.array(data.draw(st.permutations(range(len(scores)))))

    is_kept = select_top(score_N, key_N, keep)

    worst = max((-score_N[i], key_N[i]) for i in np.flatnonzero(is_kept))
    assert all((-score_N[i], key_N[i]) > worst for i in np.flatnonzero(~is_kept))


def test_content_keys_fit_a_signed_column_and_differ() -> None:
    keys = [content_key(str(i).encode()) for i in range(1000)]

    assert len(set(keys)) == 1000
    assert 0 <= min(keys) <= max(keys) < 2**63


def test_mean_is_the_sum_by_token() -> None:
    large, small, counts = np.array([-1.0, -8.0]), np.array([-3.0, -2.0]), np.array([2, 3])

    assert delta_loss(large, small, counts, "sum").tolist() == [2.0, -6.0]
    assert delta_loss(large, small, counts, "mean").tolist() == [1.0, -2.0]


def test_score_of_no_known_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="score must be one of mean, sum, got 'median'"):
        delta_loss(np.zeros(1), np.zeros(1), np.ones(1), "median")


@pytest.mark.parametrize("row_tokens", [1, 150, 10_000])
def test_scores_are_log_probabilities_of_whole_answers(scorers: tuple[Scorer, Scorer], row_tokens: int) -> None:
    world = PlantedWorld(PlantedSpec(num_samples=5, num_turns=2))
    samples = [world.read(i) for i in range(5)]
    read = [(sample.name, *(scorer.encode(sample) for scorer in scorers)) for sample in samples]

    scores = score_samples(*scorers, read, row_tokens)

    for score, sample in zip(scores, samples, strict=True):
        told = [learned_log_probs(scorer.model, join([scorer.encode(sample)])) for scorer in scorers]
        assert score.num_tokens == len(told[0])
        assert score.log_large == pytest.approx(told[0].sum().item(), abs=1e-4)
        assert score.log_small == pytest.approx(told[1].sum().item(), abs=1e-4)


def test_model_against_itself_scores_nothing(scorers: tuple[Scorer, Scorer]) -> None:
    sample = PlantedWorld(PlantedSpec(num_samples=1)).read(0)
    large = scorers[0]

    (score,) = score_samples(large, large, [(sample.name, large.encode(sample), large.encode(sample))], 100)

    assert score.log_large == score.log_small < 0


def test_bf16_weights_score_about_the_same(scorers: tuple[Scorer, Scorer]) -> None:
    sample = PlantedWorld(PlantedSpec(num_samples=1, num_turns=3)).read(0)
    rounded = Scorer(open_checkpoint(LITE), dtype=torch.bfloat16)

    fp32, bf16 = (scorer.log_probs([scorer.encode(sample)], 100)[0] for scorer in (scorers[0], rounded))

    assert bf16 == pytest.approx(fp32, rel=0.05)
    assert bf16 != fp32


def test_different_tokenizers_are_refused(scorers: tuple[Scorer, Scorer]) -> None:
    other = Scorer(open_checkpoint(find_checkpoint("nvila-tiny")))

    check_tokenizers(*scorers)
    with pytest.raises(CheckpointError, match="must have one tokenizer"):
        check_tokenizers(scorers[0], other)


def test_answers_that_are_cut_differently_are_refused(scorers: tuple[Scorer, Scorer]) -> None:
    first, second = (PlantedWorld(PlantedSpec(num_samples=2, num_turns=4)).read(i) for i in (0, 1))

    with pytest.raises(CheckpointError, match=r"record 7: .* tokenize its answer differently"):
        score_samples(*scorers, [("record 7", scorers[0].encode(first), scorers[1].encode(second))], 100)


def test_number_that_is_none_is_refused_by_name(scorers: tuple[Scorer, Scorer]) -> None:
    broken = Scorer(open_checkpoint(LITE))  # weights that are finite can overflow in a narrow dtype
    broken.model.mm_projector.layers[1].weight.data.fill_(math.nan)
    sample = dataclasses.replace(PlantedWorld(PlantedSpec(num_samples=1)).read(0), name="record 7")

    with pytest.raises(DataError, match=r"record 7: .*ckpt gives its answer the log probability nan"):
        score_samples(scorers[0], broken, [(sample.name, scorers[0].encode(sample), broken.encode(sample))], 100)
