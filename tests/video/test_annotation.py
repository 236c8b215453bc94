"""Words on a frame: drawn at its foot, within it, and on a copy."""

from __future__ import annotations

import numpy as np
import pytest

from nvila_ros.video.annotation import annotate


@pytest.mark.parametrize("shape", [(480, 640), (720, 1280), (120, 160), (1, 1)])
def test_only_the_foot_changes_and_the_frame_itself_does_not(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 200, np.uint8)

    drawn = annotate(image, ["Is there a star?", "yes (0.97)", "BEGIN star: yes"])

    assert drawn.shape == image.shape
    assert (image == 200).all()
    changed = (drawn != image).any(axis=(1, 2))
    assert not changed[: shape[0] // 2].any()
    assert changed.any() == (shape[0] > 100)


def test_what_is_longer_than_the_frame_stays_within_it() -> None:
    drawn = annotate(np.zeros((240, 320, 3), np.uint8), ["w" * 500, "\u2603 \n"])

    assert drawn[:, -4:].max() < 100
