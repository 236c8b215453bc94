from __future__ import annotations

from pathlib import Path

import pytest

from nvila_ros.types import NS_PER_S
from nvila_ros.video.loss_watch import Loss, LossWatch, explain


def watch_seconds(watch: LossWatch, per_second: list[tuple[int, int]], **kwargs: int | bool) -> list[Loss | None]:
    """Return what the watch says each second, given the frames that came and were lost in it."""
    received = lost = 0
    said = []
    for second, (came, missed) in enumerate(per_second):
        received, lost = received + came, lost + missed
        told = {"num_publishers": 1, "has_qos_mismatch": False} | kwargs
        said.append(watch.check(second * NS_PER_S, num_received=received, num_lost=lost, **told))
    return said


def test_healthy_stream_is_not_reported() -> None:
    assert watch_seconds(LossWatch(), [(30, 1)] * 10) == [None] * 10


def test_silence_is_reported_after_three_seconds() -> None:
    assert watch_seconds(LossWatch(), [(0, 0)] * 5) == [None] * 3 + [Loss.SILENT] * 2


def test_stream_that_ends_is_reported_as_such() -> None:
    assert watch_seconds(LossWatch(), [(30, 0)] * 3 + [(0, 0)] * 4)[-2:] == [Loss.STOPPED] * 2


def test_slow_camera_is_not_reported_between_its_frames() -> None:
    told = watch_seconds(LossWatch(), [(1, 0), *[(0, 0)] * 4] * 6 + [(0, 0)] * 15)

    assert told[5:40] == [None] * 35
    assert told[-1] is Loss.STOPPED


def test_camera_that_nobody_started_is_told_as_such() -> None:
    assert watch_seconds(LossWatch(), [(0, 0)] * 5, num_publishers=0) == [None] * 3 + [Loss.ABSENT] * 2


def test_more_lost_than_received_is_reported() -> None:
    assert watch_seconds(LossWatch(), [(1, 29)] * 4)[-1] is Loss.LOST


def test_silence_with_a_mismatch_names_the_quality_of_service() -> None:
    assert watch_seconds(LossWatch(), [(0, 0)] * 4, has_qos_mismatch=True)[-1] is Loss.QOS


def test_recovery_ends_the_report() -> None:
    assert watch_seconds(LossWatch(), [(0, 30)] * 4 + [(30, 0)] * 4)[-1] is None


@pytest.mark.parametrize("loss", [Loss.SILENT, Loss.LOST])
def test_explanation_names_the_profile_where_fast_dds_is_used(loss: Loss) -> None:
    assert "FASTDDS_DEFAULT_PROFILES_FILE=/x/shm.xml" in explain(loss, Path("/x/shm.xml"))
    assert "FASTDDS" not in explain(loss, None)
