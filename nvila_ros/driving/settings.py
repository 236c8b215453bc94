"""What can be set of a drive: the parameters of the node `nvila_drive`."""

from __future__ import annotations

from dataclasses import dataclass

from nvila_ros.config import check_fields, setting
from nvila_ros.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveConfig:
    """The drive node's parameters. A model changes none of them.

    Raises:
        ConfigError: a value outside its range or choices.
    """

    armed: bool = setting(
        False, "whether the robot may be moved; else every goal but a dry run is refused", read_only=False
    )
    motion: str = setting(
        "auto",
        "what moves the robot: Nav2's behaviours, cmd_vel, or nothing; auto takes Nav2's where their servers are, else "
        "cmd_vel where somebody listens, else nothing",
        choices=("auto", "nav2", "cmd_vel", "dry_run"),
    )
    node: str = setting("nvila", "name of the node that answers")
    wording: str = setting(
        "short",
        "how the model is asked: short, as nvila-tiny-nav was tuned, or navila, in NaVILA's words",
        choices=("short", "navila"),
    )
    camera: str = setting("camera", "the node's name of the camera that looks ahead")
    image_transport: str = setting(
        "raw", "how the camera's images come here: sensor_msgs/Image, or CompressedImage", choices=("raw", "compressed")
    )
    min_probability: float = setting(
        0.15,
        "of the chosen action, below which the robot stops; chance is 0.1",
        low=0.1,
        high=1.0,
        read_only=False,
    )
    max_steps: int = setting(60, "steps of a goal that names no number", "steps", low=1, high=1000, read_only=False)
    max_s: float = setting(180.0, "time of a goal that names none", "s", low=1.0, high=3600.0, read_only=False)
    max_m: float = setting(20.0, "way of a goal that names none", "m", low=0.1, high=1000.0, read_only=False)
    speed: float = setting(0.3, "of a way ahead", "m/s", low=0.02, high=1.0, read_only=False)
    turn_speed: float = setting(0.8, "of a turn", "rad/s", low=0.1, high=2.0, read_only=False)
    deceleration: float = setting(0.8, "with which a way ahead ends", "m/s^2", low=0.05, high=5.0, read_only=False)
    answer_s: float = setting(10.0, "longest wait for an answer", "s", low=0.1, high=300.0, read_only=False)
    max_age_s: float = setting(
        1.0,
        "oldest that a choice's newest frame may be as its step begins",
        "s",
        low=0.05,
        high=30.0,
        read_only=False,
    )
    watch_s: float = setting(
        0.15,
        "longest without a new frame, odometry or scan; the node that answers may be silent for 0.1 s more",
        "s",
        low=0.05,
        high=5.0,
        read_only=False,
    )
    frozen_s: float = setting(
        0.12, "how long a camera may repeat one picture, bit by bit", "s", low=0.05, high=60.0, read_only=False
    )
    settle_s: float = setting(
        0.15,
        "from a step's end to the first frame that the next is chosen by",
        "s",
        low=0.0,
        high=5.0,
        read_only=False,
    )
    lock_topic: str = setting("", "std_msgs/Bool: true or silence locks the robot; empty: `armed` alone decides")
    lock_timeout_s: float = setting(0.25, "silence that locks", "s", low=0.05, high=10.0)
    odometry_topic: str = setting("odom", "nav_msgs/Odometry by which steps are measured; empty: by time")
    scan_topic: str = setting("scan", "sensor_msgs/LaserScan that guards cmd_vel; empty: see base_has_guard")
    base_has_guard: bool = setting(
        False,
        "that what takes cmd_vel stops before obstacles by itself, as Nav2's collision_monitor does; else cmd_vel is "
        "used with a scan alone",
    )
    robot_radius_m: float = setting(0.2, "of the circle that holds the robot", "m", low=0.02, high=3.0)
    guard_m: float = setting(0.12, "that stays free before the robot", "m", low=0.01, high=3.0)
    detours: bool = setting(
        True,
        "go round what is in the way, and ahead where turning finds nothing; false: make what is chosen or nothing",
    )
    max_blocked: int = setting(
        9, "ways ahead that were blocked, with none made between them, that end a drive", "steps", low=1, high=100
    )
    cmd_vel_topic: str = setting("cmd_vel", "where velocities are published; with twist_mux its lowest priority")
    stamped: str = setting(
        "auto",
        "whether cmd_vel is TwistStamped; auto: from Kilted on, as in Nav2",
        choices=("auto", "true", "false"),
    )
    base_frame: str = setting("base_link", "tf frame of the velocities")
    interrupts: tuple[str, ...] = setting(("",), "names of standing queries whose begin ends the drive")
    sends_pictures: bool = setting(True, "whether ~/step carries the newest frame as JPEG")
    strict_parameters: bool = setting(False, "end the node at a parameter that it does not know; false: warn")

    def __post_init__(self) -> None:
        """Check every field against its bound."""
        check_fields(self)
        if self.lock_topic and self.lock_topic == self.cmd_vel_topic:
            raise ConfigError(f"lock_topic and cmd_vel_topic must differ, both are {self.lock_topic!r}")
