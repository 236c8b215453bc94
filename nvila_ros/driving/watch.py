"""What must hold while a robot is driven: frames come and change, clocks agree, the lock is open, the model lives.

Everything comes with the time at which it came: `ros_ns` of the ROS clock, by which frames are stamped, `steady_ns`
of one that never jumps, by which silence is measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from nvila_ros.driving.outcomes import DriveStop, Fault
from nvila_ros.driving.settings import DriveConfig
from nvila_ros.types import NS_PER_S

JUMP_S = 1.0
"""The ROS clock may gain so much on the steady one between two looks, and frames be stamped so far ahead of it."""
MIN_REPEATS = 2
"""Repeats of a frame before a camera counts as frozen, however fast they come."""


@dataclass(slots=True)
class Frames:
    """The newest frame of the camera, and how long its picture has been the same."""

    stamp_ns: int = 0
    came_ns: int = 0
    digest: bytes = b""
    changed_ns: int = 0
    num_repeats: int = 0


@dataclass(slots=True)
class Watch:
    """Keeps what was observed, and says what is wrong."""

    config: DriveConfig
    frames: Frames
    armed: bool = False
    is_locked: bool = True
    lock_ns: int | None = None
    is_alive: bool = True
    interrupted_by: str = ""
    jumped: str = ""
    _ros_ns: int | None = None
    _steady_ns: int = 0

    def on_frame(self, stamp_ns: int, digest: bytes, steady_ns: int) -> None:
        """Take note of a frame of the camera; digest is of its pixels."""
        frames = self.frames
        if frames.stamp_ns and stamp_ns < frames.stamp_ns:
            self.jumped = f"the camera's stamps went back by {(frames.stamp_ns - stamp_ns) / NS_PER_S:.3f} s"
        if frames.stamp_ns == stamp_ns:
            return  # the same frame once more says nothing new
        is_new = digest != frames.digest
        frames.num_repeats = 0 if is_new else frames.num_repeats + 1
        frames.changed_ns = steady_ns if is_new else frames.changed_ns
        frames.stamp_ns, frames.came_ns, frames.digest = stamp_ns, steady_ns, digest

    def on_lock(self, is_locked: bool, steady_ns: int) -> None:
        """Take note of the lock: a message is a heartbeat whatever it says."""
        self.is_locked, self.lock_ns = is_locked, steady_ns

    def look(self, ros_ns: int, steady_ns: int) -> None:
        """Compare the clocks; call it at every turn."""
        if self._ros_ns is not None:
            gained_s = ((ros_ns - self._ros_ns) - (steady_ns - self._steady_ns)) / NS_PER_S
            if ros_ns < self._ros_ns or gained_s > JUMP_S:
                self.jumped = f"the ROS clock jumped by {(ros_ns - self._ros_ns) / NS_PER_S:.3f} s"
        self._ros_ns, self._steady_ns = ros_ns, steady_ns

    def clear(self) -> None:
        """Forget jumps and interrupts of before a goal."""
        self.jumped = self.interrupted_by = ""

    def fault(self, ros_ns: int, steady_ns: int, *, is_dry: bool = False) -> Fault | None:
        """Return what forbids the drive to go on, the gravest first; None where nothing does.

        Args:
            ros_ns: now.
            steady_ns: now.
            is_dry: nothing is moved, so that the robot may be locked.
        """
        if not is_dry and (fault := self.lock_fault(steady_ns)):
            return fault
        if self.jumped:
            return Fault(DriveStop.CLOCK_JUMP, f"{self.jumped}; it is unknown how old frames are, set out anew")
        if self.interrupted_by:
            return Fault(DriveStop.INTERRUPTED, f"standing query {self.interrupted_by!r} turned true")
        if not self.is_alive:
            return Fault(DriveStop.NO_ANSWER, f"{self.config.node} gives no sign of life; see its log, start it again")
        return self.camera_fault(ros_ns, steady_ns)

    def lock_fault(self, steady_ns: int) -> Fault | None:
        """Return why the robot may not be moved at all."""
        topic = self.config.lock_topic
        if not self.armed:
            return Fault(DriveStop.DISARMED, "the robot is not armed; set the parameter armed where it may move")
        if not topic:
            return None
        if self.lock_ns is None or steady_ns - self.lock_ns > self.config.lock_timeout_s * NS_PER_S:
            silence = "never came" if self.lock_ns is None else f"is {(steady_ns - self.lock_ns) / NS_PER_S:.2f} s old"
            return Fault(DriveStop.DISARMED, f"the heartbeat on {topic} {silence}; publish false there at 10 Hz")
        if self.is_locked:
            return Fault(DriveStop.DISARMED, f"the robot is locked by {topic}; publish false there to unlock it")
        return None

    def camera_fault(self, ros_ns: int, steady_ns: int) -> Fault | None:
        """Return what is wrong with the frames."""
        frames, config = self.frames, self.config
        if not frames.stamp_ns:
            return Fault(DriveStop.STALE, "no frame of the camera has come; see its driver and topic")
        ahead_s = (frames.stamp_ns - ros_ns) / NS_PER_S
        if ahead_s > JUMP_S:
            return Fault(
                DriveStop.CLOCK_JUMP, f"the newest frame is stamped {ahead_s:.3f} s ahead; synchronize the clocks"
            )
        silence_s = (steady_ns - frames.came_ns) / NS_PER_S
        if silence_s > config.watch_s or -ahead_s > config.max_age_s:
            text = f"the newest frame is {-ahead_s:.2f} s old and came {silence_s:.2f} s ago"
            return Fault(DriveStop.STALE, f"{text}; at most {config.max_age_s} and {config.watch_s} s are allowed")
        same_s = (frames.came_ns - frames.changed_ns) / NS_PER_S
        if frames.num_repeats >= MIN_REPEATS and same_s >= config.frozen_s:
            return Fault(DriveStop.FROZEN, f"the camera has repeated one picture for {same_s:.2f} s; see its driver")
        return None
