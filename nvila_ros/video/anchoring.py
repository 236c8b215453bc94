"""Which frames of a live window are shown so that most of its prompt stays as it was: an anchored grid of time.

Evenly spread frames all change when a window slides. Here time itself is divided, from stamp 0, into ticks, a group of
ticks for each group of frames that the model averages, and a stride of several groups. A tick is shown by its first
frame, so a group that has passed is made of the same frames whatever window holds it. A window begins where a stride
does, at or before where it was asked to begin: until the next stride its prompt grows at its end only.

The newest group is not over. Its ticks from the newest frame's on show the newest frame, so now is always shown. A tick
without a frame shows that of the tick before it, or else the first of its group; a group without frames is left out.

The law: a window of W seconds shows all of W and, beyond it, less than a stride: at most a third of W, or one group
where the past is kept so thinly that a group is longer than that.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from nvila_ros.errors import QueryError

MIN_GROUPS = 4
"""Fewest groups of a clip: one of them is the stride."""
ROUNDING = 1e-6  # a length in seconds may lack a few ns of whole groups


@dataclass(frozen=True, slots=True)
class TimeGrid:
    """Ticks, groups and strides, all counted from stamp 0.

    Attributes:
        tick_ns: of each tick one frame is shown.
        frames_per_group: ticks of a group.
        groups_per_stride: groups by which the beginning of a window moves.
    """

    tick_ns: int
    frames_per_group: int
    groups_per_stride: int

    @classmethod
    def for_window(
        cls, window_ns: int, num_frames: int, frames_per_group: int, *, kept_ns: int = 0, period_ns: int = 1
    ) -> TimeGrid:
        """Return the finest grid on which a window of this length, wherever it lies, takes at most `num_frames`.

        Args:
            window_ns: length of the window.
            num_frames: most frames that are shown.
            frames_per_group: that the model averages, 1 where it averages none.
            kept_ns: how far back every frame is kept. A grid that reaches further has ticks of whole periods.
            period_ns: of older frames the first in each period is kept; it is also the first in its tick then.

        Raises:
            QueryError: there are fewer than `MIN_GROUPS` groups.
        """
        num_groups = num_frames // frames_per_group
        if num_groups < MIN_GROUPS:
            raise QueryError(
                f"sampling anchored needs at least {MIN_GROUPS} groups of frames a camera, here "
                f"{MIN_GROUPS * frames_per_group} frames, got {num_frames}; ask for more by num_frames, or take "
                "sampling uniform"
            )
        stride = num_groups // 4
        grid = cls(max(1, -(-window_ns // ((num_groups - stride) * frames_per_group))), frames_per_group, stride)
        if window_ns + grid.stride_ns <= kept_ns:
            return grid
        grid = cls(-(-grid.tick_ns // period_ns) * period_ns, frames_per_group, stride)
        whole = round(window_ns * (1 + ROUNDING)) // grid.group_ns
        return cls(grid.tick_ns, frames_per_group, max(1, min(stride, whole // 3)))

    @property
    def group_ns(self) -> int:
        """Length of a group."""
        return self.tick_ns * self.frames_per_group

    @property
    def stride_ns(self) -> int:
        """Length of a stride."""
        return self.group_ns * self.groups_per_stride

    def begin(self, start_ns: int) -> int:
        """Return the stamp at which a window that was asked to begin at `start_ns` does."""
        return start_ns // self.stride_ns * self.stride_ns

    def choose(self, stamps_ns: Sequence[int]) -> list[int]:
        """Choose the frames that stand for the ticks, whole groups of them.

        Args:
            stamps_ns: capture times, ascending, at least one; from the begin of a group on.

        Returns:
            ascending indices, the last that of the newest frame; a frame that stands for several ticks is repeated.
        """
        groups = range(stamps_ns[0] // self.group_ns, stamps_ns[-1] // self.group_ns + 1)
        return [index for group in groups for index in self._fill(stamps_ns, group)]

    def _fill(self, stamps_ns: Sequence[int], group: int) -> list[int]:
        ticks = range(group * self.frames_per_group, (group + 1) * self.frames_per_group)
        found = [self._find(stamps_ns, tick) for tick in ticks]
        shown = next((index for index in found if index is not None), None)
        if shown is None:
            return []
        return [shown := shown if index is None else index for index in found]

    def _find(self, stamps_ns: Sequence[int], tick: int) -> int | None:
        """Return the frame of a tick, or None where it has none."""
        first = bisect_left(stamps_ns, tick * self.tick_ns)
        end_ns = (tick + 1) * self.tick_ns
        if first == len(stamps_ns) or stamps_ns[first] >= end_ns:
            return None
        return first if stamps_ns[-1] >= end_ns else len(stamps_ns) - 1
