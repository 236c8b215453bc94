"""What a camera sees follows from the stamp alone, in every process alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nvila_ros.errors import ConfigError
from nvila_ros.world.frame_source import FILM_S, FilmSource, VideoSource, WorldSource, film_world
from nvila_ros.world.live_world import LiveWorld
from nvila_ros.world.rendering import render

NOW_NS = 1_795_375_236_018_625_663
EPOCH_NS = NOW_NS - 5_500_000_000


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "world.mp4"
    film_world(path, 3, 160, 120, fps=10)
    return path


@pytest.mark.parametrize("epoch_ns", [0, EPOCH_NS])
def test_world_time_is_stamp_less_epoch(epoch_ns: int) -> None:
    source = WorldSource(7, 160, 120, epoch_ns=epoch_ns)

    index, scene, t_s = LiveWorld(7).scene_at((NOW_NS - epoch_ns) / 10**9)

    moment = source.moment_at(NOW_NS)
    assert (moment.scene_id, moment.scene, moment.t_s) == ((0, index), scene, t_s)
    assert np.array_equal(source.frame_at(NOW_NS), render(scene, t_s, 160, 120))


def test_two_sources_see_the_same() -> None:
    assert np.array_equal(WorldSource(1, 320, 180).frame_at(NOW_NS), WorldSource(1, 320, 180).frame_at(NOW_NS))


def test_world_before_its_epoch_is_an_error() -> None:
    with pytest.raises(ConfigError, match="epoch must not lie after the clock"):
        WorldSource(0, 64, 48, epoch_ns=NOW_NS + 1).frame_at(NOW_NS)


@pytest.mark.parametrize(("width", "height"), [(640, 100), (100, 640)])
def test_world_of_a_strange_shape_is_an_error(width: int, height: int) -> None:
    with pytest.raises(ConfigError, match=r"must lie in \[0.5, 3\]"):
        WorldSource(0, width, height)


def test_video_runs_in_a_loop_true_to_time(film: Path) -> None:
    video = VideoSource(film, epoch_ns=EPOCH_NS)

    seen = [video.index_at(EPOCH_NS + round(t * 1e9)) for t in (0.0, 0.099, 0.101, 7.95, 8.001, 20.05)]

    assert video.fps == 10.0
    assert seen == [(0, 0), (0, 0), (0, 1), (0, 79), (1, 0), (2, 40)]


@pytest.mark.parametrize("t_s", [0.55, 5.25, FILM_S + 6.05, 3 * FILM_S + 1.95])
def test_film_shows_the_world_that_it_tells(film: Path, t_s: float) -> None:
    source = FilmSource(film, 3, aspect=4 / 3)
    stamp_ns = round(t_s * 1e9)

    moment = source.moment_at(stamp_ns)

    told = render(moment.scene, moment.t_s, 160, 120).astype(int)
    assert np.abs(source.frame_at(stamp_ns) - told).mean() < 6  # grey levels: what compression costs
    assert moment.t_s == pytest.approx(t_s % 4.0, abs=0.1)


def test_each_showing_of_a_scene_is_another_one(film: Path) -> None:
    source = FilmSource(film, 3, aspect=4 / 3)

    ids = [source.moment_at(round(t * 1e9)).scene_id for t in (1.0, 5.0, 9.0, 13.0)]

    assert ids == [(0, 0), (0, 1), (1, 0), (1, 1)]
