"""The wide suite: tiers are what they are called, cases fixed and held out, choices hold the truth."""

from collections import Counter

import pytest

from nvila_ros.errors import ConfigError
from nvila_ros.world.photographs import EXAMINATION, crop_photograph
from nvila_ros.world.scene import CONTOUR_RADII
from nvila_ros.world.unknown_things import NOUNS, SUITE_NOUNS
from nvila_ros.world.wide_questions import NONE, NOWHERE
from nvila_ros.world.wide_suite import TIERS, choices_of, eval_wide_case, render_either

WITH_PHOTOGRAPHS = {name for name, tier in TIERS.items() if tier.look.photograph_share}


def cases(tier: str, count: int = 48) -> list:
    if tier in WITH_PHOTOGRAPHS:
        try:
            for name in EXAMINATION:
                crop_photograph(name, 0, 1.0, 8, 8)
        except ConfigError as missing:
            pytest.skip(str(missing))
    return [eval_wide_case(tier, index) for index in range(count)]


@pytest.mark.parametrize("tier", TIERS)
def test_tier_is_as_wide_as_its_look_and_asks_its_kinds(tier: str) -> None:
    look, found = TIERS[tier].look, cases(tier)

    heights = [2 * obj.size * CONTOUR_RADII[obj.shape] for case in found for obj in case.scene.objects]
    assert {len(case.scene.objects) for case in found} <= set(look.counts)
    assert {case.question.kind for case in found} == set(TIERS[tier].kinds)
    assert all(look.heights[0] - 1e-9 <= height <= look.heights[1] for height in heights)
    assert {bool(case.scene.shadow) for case in found} <= ({True} if look.shadow_share == 1 else {True, False})
    assert found[7] == eval_wide_case(tier, 7)
    assert all(not (choices := choices_of(case.question)) or case.question.answer in choices for case in found)


def test_scenes_of_tiers_differ_and_both_cameras_film_them() -> None:
    seeds = [case.scene.seed for tier in set(TIERS) - WITH_PHOTOGRAPHS for case in cases(tier, 16)]

    assert len(set(seeds)) == len(seeds)
    assert 0.4 < sum(seed % 2 for seed in seeds) / len(seeds) < 0.6
    assert render_either(eval_wide_case("light", 0).scene, 0.0, 64, 48).shape == (48, 64, 3)


def test_nothing_is_there_in_empty_scenes() -> None:
    answers = Counter(case.question.answer for case in cases("empty", 60))

    assert set(answers) == {"0", "no", "nothing", NONE, NOWHERE}


def test_unknown_nouns_are_none_that_training_asks_about() -> None:
    texts = [case.question.text.lower() for case in cases("unknown", 60)]

    words = {word.strip("?. ") for text in texts for word in text.split()}
    assert len(words & set(SUITE_NOUNS)) > 15
    assert not words & set(NOUNS) - {"number"}  # of "number of bottles"


def test_closed_answers_are_drawn_evenly() -> None:
    counts = Counter(case.question.answer for case in cases("usual", 160) if case.question.kind == "count")

    assert set(counts) == {"1", "2", "3", "4"}
