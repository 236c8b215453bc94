"""Windows: what they say, what they show, and the table that is quick against the formula that is plain."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.errors import ConfigError
from nvila_ros.types import RawImage
from nvila_ros.video.image_decoding import decode
from nvila_ros.video.windowing import FILE, FUNCTIONS, Window, find_span, parse_window, show_values, span


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("auto", Window("auto")),
        ("full", Window("full")),
        ("file", Window(FILE)),
        ("50/400", Window("LINEAR", 50, 400)),
        ("-600/1500", Window("LINEAR", -600, 1500)),
        ("200:4000", Window("LINEAR_EXACT", 2100, 3800)),
        ("-1.5:2.5", Window("LINEAR_EXACT", 0.5, 4)),
    ],
)
def test_windows_are_read_and_written_alike(text: str, window: Window) -> None:
    assert parse_window(text) == window
    assert str(window) == text


@pytest.mark.parametrize("text", ["", "12", "5:5", "9:3", "40/0", "40/-1", "a:b", "1e999:2", "1:2:3", "AUTO", "nan:1"])
def test_what_is_no_window_is_refused_by_rule(text: str) -> None:
    with pytest.raises(ConfigError, match=r"a window must be auto, full, file, MIN:MAX as 200:4000, or CENTRE/WIDTH"):
        parse_window(text)


def by_the_standard(x: float, kind: str, c: float, w: float) -> float:
    """PS3.3, C.11.2.1.2 and C.11.2.1.3, with y from 0 to 255, as the standard writes it."""
    if kind == "SIGMOID":
        return 255 / (1 + math.exp(min(-4 * (x - c) / w, 700)))
    if kind == "LINEAR":
        if x <= c - 0.5 - (w - 1) / 2:
            return 0
        return 255 if x > c - 0.5 + (w - 1) / 2 else ((x - (c - 0.5)) / (w - 1) + 0.5) * 255
    if x <= c - w / 2:
        return 0
    return 255 if x > c + w / 2 else ((x - c) / w + 0.5) * 255


@given(
    st.lists(st.integers(-3000, 70000), min_size=1, max_size=20),
    st.sampled_from(FUNCTIONS),
    st.integers(-2000, 66000),
    st.integers(1, 5000),
)
def test_values_are_shown_by_the_standards_formula(values: list[int], kind: str, centre: int, width: int) -> None:
    shown = show_values(np.array(values), Window(kind, centre, width))

    wanted = [by_the_standard(x, kind, centre, width) for x in values]
    np.testing.assert_allclose(shown, wanted, atol=0.5000001)


@given(
    st.lists(st.integers(0, 65535), min_size=1, max_size=300), st.sampled_from(["auto", "full", "100:5000", "900/70"])
)
def test_the_table_of_sixteen_bits_shows_the_same_as_the_formula(values: list[int], text: str) -> None:
    window = parse_window(text)
    np.testing.assert_array_equal(
        show_values(np.array(values, np.uint16), window), show_values(np.array(values, np.int64), window)
    )


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=2000))
def test_counted_percentiles_are_those_of_sorting(values: list[int]) -> None:
    assert find_span(np.array(values, np.uint16)) == find_span(np.array(values, np.int64))


def test_auto_ignores_single_hot_pixels() -> None:
    values = np.arange(1000, dtype=np.uint16).reshape(20, 50)
    values[0, 0] = 65535
    assert find_span(values) == span(5, 995)
    assert find_span(np.full((4, 4), 7, np.uint16)) == span(7, 8)


@pytest.mark.parametrize("is_bigendian", [False, True])
def test_a_dark_camera_is_shown_by_its_window(is_bigendian: bool) -> None:
    values = np.array([[0, 1024, 4095], [512, 2048, 3000]], ">u2" if is_bigendian else "<u2")
    padded = np.zeros((2, 10), np.uint8)
    padded[:, :6] = values.view(np.uint8)
    raw = {"data": padded.reshape(-1), "encoding": "mono16", "width": 3, "height": 2, "step": 10}

    shown = {w: decode(RawImage(**raw, is_bigendian=is_bigendian, window=w)) for w in ("full", "0:4095", "auto")}

    np.testing.assert_array_equal(shown["full"][..., 0], values >> 8)
    np.testing.assert_array_equal(shown["0:4095"][..., 0], np.rint(values / 4095 * 255))
    assert shown["auto"].shape == (2, 3, 3)
    assert shown["auto"].max() == 255
