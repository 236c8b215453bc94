"""What the watch forbids, and that it forbids it in time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.driving.outcomes import DriveStop
from nvila_ros.driving.settings import DriveConfig
from nvila_ros.driving.watch import Frames, Watch
from nvila_ros.types import NS_PER_S

MS = NS_PER_S // 1000
START = 1_000 * NS_PER_S


def watching(**fields: object) -> Watch:
    limits = {"watch_s": 0.3, "frozen_s": 0.3, "lock_timeout_s": 0.3}
    return Watch(DriveConfig(**{**limits, **fields}), Frames(), armed=True)  # type: ignore[arg-type]


def film(watch: Watch, first_ms: int, last_ms: int, *, is_frozen: bool = False, late_ms: int = 0) -> None:
    """Frames at 20 Hz that come `late_ms` after their stamps."""
    for ms in range(first_ms, last_ms + 1, 50):
        digest = b"same" if is_frozen else str(ms).encode()
        watch.on_frame(START + (ms - late_ms) * MS, digest, ms * MS)


def reason(watch: Watch, ms: int, *, is_dry: bool = False) -> DriveStop | None:
    watch.look(START + ms * MS, ms * MS)
    fault = watch.fault(START + ms * MS, ms * MS, is_dry=is_dry)
    return fault.reason if fault else None


def test_fresh_frames_that_change_are_well() -> None:
    watch = watching()
    film(watch, 0, 2000)

    assert reason(watch, 2040) is None


def test_no_frame_and_silence_are_stale() -> None:
    watch = watching()
    assert reason(watch, 0) is DriveStop.STALE
    film(watch, 0, 1000)

    assert reason(watch, 1290) is None
    assert reason(watch, 1301) is DriveStop.STALE


def test_frames_that_come_late_are_stale() -> None:
    watch = watching()
    film(watch, 0, 4000, late_ms=2000)

    assert reason(watch, 4010) is DriveStop.STALE


def test_a_picture_that_repeats_is_frozen_and_one_that_comes_twice_is_not() -> None:
    watch = watching()
    film(watch, 0, 1000)
    film(watch, 1050, 1150, is_frozen=True)
    assert reason(watch, 1150) is None
    film(watch, 1200, 1450, is_frozen=True)

    assert reason(watch, 1450) is DriveStop.FROZEN
    film(watch, 1500, 1500)
    assert reason(watch, 1500) is None


def test_a_stamp_that_is_sent_again_is_no_frame() -> None:
    watch = watching()
    film(watch, 0, 1000)
    for ms in range(1000, 1400, 50):
        watch.on_frame(START + 1000 * MS, b"new", ms * MS)

    assert reason(watch, 1400) is DriveStop.STALE


def test_stamps_and_clocks_that_jump_end_until_they_are_forgotten() -> None:
    back, ahead, clock = watching(), watching(), watching()
    film(back, 0, 1000)
    back.on_frame(START, b"x", 1010 * MS)
    assert reason(back, 1010) is DriveStop.CLOCK_JUMP

    film(ahead, 0, 1000, late_ms=-5000)
    assert reason(ahead, 1000) is DriveStop.CLOCK_JUMP

    film(clock, 0, 1000)
    clock.look(START + 1000 * MS, 1000 * MS)
    clock.look(START + 9000 * MS, 1020 * MS)
    fault = clock.fault(START + 1020 * MS, 1020 * MS)
    assert fault is not None
    assert fault.reason is DriveStop.CLOCK_JUMP
    clock.clear()
    assert clock.fault(START + 1020 * MS, 1020 * MS) is None


def test_a_slow_or_fast_simulation_is_no_jump() -> None:
    for rate in (0.1, 1.0, 3.0):
        watch = watching()
        for ms in range(0, 4000, 50):
            watch.look(START + int(ms * rate) * MS, ms * MS)

        assert not watch.jumped


def test_the_lock_needs_a_heartbeat_that_says_false() -> None:
    watch = watching(lock_topic="lock")
    film(watch, 0, 1000)
    assert reason(watch, 1000) is DriveStop.DISARMED
    watch.on_lock(False, 1000 * MS)
    assert reason(watch, 1010) is None
    assert reason(watch, 1301) is DriveStop.DISARMED
    watch.on_lock(True, 1301 * MS)
    assert reason(watch, 1302) is DriveStop.DISARMED
    film(watch, 1050, 1300)
    assert reason(watch, 1302, is_dry=True) is None


def test_disarmed_is_the_default_and_the_gravest() -> None:
    watch = Watch(DriveConfig(), Frames())

    assert DriveConfig().armed is False
    assert reason(watch, 0) is DriveStop.DISARMED


def test_a_dead_node_and_a_standing_query_end_the_drive() -> None:
    watch = watching()
    film(watch, 0, 1000)
    watch.is_alive = False
    assert reason(watch, 1000) is DriveStop.NO_ANSWER
    watch.interrupted_by = "person"
    assert reason(watch, 1000) is DriveStop.INTERRUPTED


@given(stamps=st.lists(st.integers(0, 5000), min_size=1, max_size=40), now=st.integers(0, 8000))
def test_nothing_is_well_without_a_young_frame(stamps: list[int], now: int) -> None:
    watch = watching()
    for place, ms in enumerate(stamps):
        watch.on_frame(START + ms * MS, str(place).encode(), ms * MS)
    fault = watch.fault(START + now * MS, now * MS)

    if fault is None:
        assert 0 <= now - watch.frames.came_ns // MS <= 300 or now < watch.frames.came_ns // MS
        assert stamps == sorted(stamps)
