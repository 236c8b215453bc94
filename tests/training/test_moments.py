"""What training draws: how many things an image of two colours has, and which questions are asked more often."""

import pytest

from nvila_ros.training.moments import draw_moment, draw_turns
from nvila_ros.world.questions import STILL_KINDS
from nvila_ros.world.scene import scene_rng


@pytest.mark.parametrize("palette_share", [0.0, 1.0])
def test_images_of_two_colors_alone_have_as_many_things_as_asked_for(palette_share: float) -> None:
    scenes = [draw_moment(scene_rng(seed), None, palette_share, least_of_palette=3)[0] for seed in range(40)]

    assert {len(scene.objects) for scene in scenes} == ({3, 4} if palette_share else {1, 2, 3, 4})


def test_kinds_asked_more_often_come_beside_a_turn_of_each() -> None:
    for seed in range(20):
        rng = scene_rng(seed)
        scene, t_s = draw_moment(rng, None, 1.0, least_of_palette=3)

        kinds = [turn.kind for turn in draw_turns(rng, scene, t_s, 12, more_kinds=("count",), num_more=1)]

        assert kinds[0] == "count"
        assert "count" in kinds[1:]
        assert set(kinds) <= {*STILL_KINDS, "describe"}
        assert len(kinds) - kinds.count("describe") == 12
