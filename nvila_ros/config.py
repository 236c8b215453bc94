"""What can be set, declared once: each field carries its text, unit and range.

The node declares its ROS parameters from these fields, docs/reference.md is generated from them, and every value is
checked here, from a file, a command line or a service.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nvila_ros.errors import ConfigError
from nvila_ros.types import Bound

MIB = 1 << 20
CLIP_FRAMES = 8
"""Frames of a clip where nobody says: as many as most published models were trained on."""


def setting(default: Any, doc: str, unit: str = "", **bound: Any) -> Any:
    """Declare a field of a config with its `Bound`."""
    return dataclasses.field(default=default, metadata={"bound": Bound(doc, unit, **bound)})


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """The node's parameters.

    Raises:
        ConfigError: a value outside its range or choices.
    """

    model: str = setting(
        "nvila-tiny",
        "checkpoint or build: a folder, or the name of an embedded or fetched one or of a recipe that was built",
    )
    backend: str = setting(
        "auto",
        "runtime of the model; auto takes that of a build's device, for checkpoints cuda where torch sees a GPU that "
        "holds them, else onnxruntime, or cpu above 1 GiB in float32; remote asks the server of `remote_url`",
        choices=("auto", "cpu", "cuda", "onnxruntime", "remote", "tensorrt", "torch"),
    )
    precision: str = setting(
        "auto",
        "of a checkpoint on the backend cpu, whose linear maps are rounded to eight or four bits while they are read; "
        "auto takes w8 there, or w4 where memory is short, and leaves all other models as they are",
        choices=("auto", "fp32", "w8", "w4"),
    )
    recipe: str = setting(
        "", "recipe, by name or file, whose build is loaded in place of `model`; empty: `model` is loaded"
    )
    build_missing_engines: bool = setting(
        False,
        "where `recipe` has no usable build: true makes one in a child process, false ends the node with the command",
    )
    answer_while_building: bool = setting(
        False, "answer with the unquantized checkpoint on ONNX Runtime until the build is there; else reject queries"
    )
    checkpoint: str = setting("", "what the recipe is built from: a folder or name; empty: the recipe's model")
    media: str = setting("", "images and videos of what the robot sees, to calibrate a build on; empty: the recipe's")
    threads: int = setting(0, "threads of the runtime; 0 takes every core", "threads", low=0, high=256)
    video_mode: str = setting(
        "video",
        "how a clip is shown: through the checkpoint's video encoder, or each frame as an image of its own",
        choices=("video", "images"),
    )
    max_tiles: int = setting(
        0, "most tiles that a single image is cut into; 0 takes the checkpoint's own number", "tiles", low=0, high=64
    )
    pixel_dtype: str = setting("float32", "what pixels are rounded to before the tower", choices=("float32", "float16"))
    cameras: tuple[str, ...] = setting(
        ("camera",), "names of the cameras; a single one is read from `image`, several from `<name>/image`"
    )
    camera_topics: tuple[str, ...] = setting(
        ("",), "topic of each camera, in the order of `cameras`; an empty one is that which `cameras` says"
    )
    image_transport: str = setting(
        "raw",
        "how images come: as sensor_msgs/Image, or as sensor_msgs/CompressedImage on `<topic>/compressed`",
        choices=("raw", "compressed"),
    )
    image_reliability: str = setting(
        "best_effort",
        "QoS reliability of the image subscriptions; best_effort matches every publisher",
        choices=("best_effort", "reliable"),
    )
    window: str = setting(
        "full",
        "which values of `mono16` images are shown: auto (percentiles of each image), MIN:MAX, CENTRE/WIDTH, or full",
    )
    buffer_s: float = setting(10.0, "frames up to this age are all kept", "s", low=0.1, high=3600.0)
    past_s: float = setting(
        60.0, "frames up to this age are kept at `past_hz`; none where not above `buffer_s`", "s", low=0.0, high=86400.0
    )
    past_hz: float = setting(1.0, "rate of the frames that are kept of the past", "Hz", low=0.001, high=1000.0)
    buffer_bytes: int = setting(
        256 * MIB,
        "bytes of frames kept over all cameras; where they run short, the past has a quarter of them",
        "bytes",
        low=1,
        high=1 << 40,
    )
    num_frames: int = setting(
        1, "frames sampled when a query names no number", "frames", low=1, high=256, read_only=False
    )
    window_s: float = setting(
        2.0, "window when a query names none, ending at the newest frame", "s", low=0.0, high=3600.0, read_only=False
    )
    max_age_s: float = setting(
        5.0,
        "questions without `start` and `end` end NO_FRAMES where a camera's newest frame is older than this; 0: never",
        "s",
        low=0.0,
        high=86400.0,
        read_only=False,
    )
    max_tokens: int = setting(64, "longest answer when a query names none", "tokens", low=1, high=8192, read_only=False)
    max_question_bytes: int = setting(
        4096, "longest question taken, in UTF-8", "bytes", low=1, high=MIB, read_only=False
    )
    max_images_bytes: int = setting(
        16 * MIB,
        "most bytes of the pictures that one question brings along, as files",
        "bytes",
        low=1,
        high=1 << 30,
        read_only=False,
    )
    queue_size: int = setting(16, "queries that may wait; more are rejected", "queries", low=1, high=4096)
    standing_queries: str = setting("", "YAML file of standing queries to start with; empty is none")
    autostart: bool = setting(True, "configure and activate by itself; false leaves it to a lifecycle manager")
    max_standing: int = setting(32, "standing queries that may be; more are refused", "queries", low=1, high=1024)
    frame_cache_bytes: int = setting(
        256 * MIB,
        "kept of encoded frames, and of tiles at most half, so that each is encoded once; 0 keeps none",
        "bytes",
        low=0,
        high=1 << 40,
    )
    prefix_caches: int = setting(
        2, "prompts whose keys and values are kept for prompts that begin alike", "prompts", low=0, high=64
    )
    repeat_threshold: float = setting(
        0.0,
        "reuse a frame's or tile's tokens where 32x32 thumbnails differ nowhere by more than this share; 0: never",
        low=0.0,
        high=1.0,
    )
    change_threshold: float = setting(
        0.0,
        "leave out frames of a clip whose visual tokens all differ by at most this (1 - cosine) from the last shown "
        "frame's; 0: none",
        low=0.0,
        high=2.0,
    )
    key_every: int = setting(
        8, "of so many frames of a clip in a row the first is shown in any case", "frames", low=1, high=256
    )
    encode_hz: float = setting(
        0.0, "rate at which the newest frames are encoded while nothing is asked; 0: never", "Hz", low=0.0, high=1000.0
    )
    warmup: bool = setting(True, "run the model once before the first question")
    http_port: int = setting(
        0, "port of the HTTP door: OpenAI's API, metrics, and a page in the browser; 0: off", low=0, high=65535
    )
    http_host: str = setting(
        "127.0.0.1", "address that the HTTP door listens on; one that other machines reach needs a token"
    )
    http_token_file: str = setting(
        "", "file with the token that clients of the HTTP door must show; empty: that of NVILA_HTTP_TOKEN, if any"
    )
    http_hosts: tuple[str, ...] = setting(
        ("",), "names by which browsers and clients may call the HTTP door, beside addresses and this machine's own"
    )
    http_origins: tuple[str, ...] = setting(
        ("",), "origins of other pages whose scripts may use the HTTP door, such as http://panel.local:3000"
    )
    remote_url: str = setting(
        "", "server with OpenAI's API that answers where `backend` is remote, such as http://gpu-box:30000/v1"
    )
    remote_model: str = setting("", "name of the server's model; empty: the first that it lists")
    remote_dialect: str = setting(
        "auto",
        "what the server takes beyond OpenAI's API; auto asks it which it is",
        choices=("auto", "openai", "vllm", "sglang", "nvila"),
    )
    remote_key_file: str = setting(
        "", "file with the key that the server asks for; empty: that of NVILA_REMOTE_KEY, if any"
    )
    remote_jpeg_quality: int = setting(
        90, "of pictures on their way to the server; 0 sends PNG, which loses nothing", low=0, high=100
    )
    remote_max_side: int = setting(
        1280, "longest side of such a picture, larger ones are made smaller; 0: none is", "px", low=0, high=16384
    )
    remote_timeout_s: float = setting(30.0, "how long the server may be silent", "s", low=0.1, high=3600.0)
    remote_retries: int = setting(
        2, "how often a question is asked again that the server did not begin to answer", "times", low=0, high=10
    )
    remote_fallback: str = setting(
        "", "checkpoint or build that answers here while the server does not, named in each answer; empty: none"
    )
    strict_parameters: bool = setting(
        False, "end the node at a parameter that it does not know; false: warn, since nodes share parameter files"
    )

    def __post_init__(self) -> None:
        """Check every field against its bound."""
        check_fields(self)
        if not self.cameras or len(set(self.cameras)) != len(self.cameras) or not all(self.cameras):
            raise ConfigError(f"cameras must be distinct non-empty names, got {list(self.cameras)}")
        for camera in self.cameras:
            if not re.fullmatch(r"[A-Za-z]\w*(/[A-Za-z]\w*)*", camera, re.ASCII):
                raise ConfigError(f"a camera's name must be letters, digits and _, parted by /, got {camera!r}")
        self._check_topics()
        for name in ("build_missing_engines", "checkpoint", "media"):
            if getattr(self, name) and not self.recipe:
                raise ConfigError(f"{name} is set without a recipe; name one by the parameter recipe")
        self._check_remote()
        if self.answer_while_building and not self.build_missing_engines:
            raise ConfigError("answer_while_building is set, but nothing may be built; set build_missing_engines too")

    def camera_topic(self, camera: str) -> str:
        """Return the topic of a camera's raw images, relative to the node's namespace unless it begins with /."""
        by_rule = "image" if len(self.cameras) == 1 else f"{camera}/image"
        return dict(zip(self.cameras, self.camera_topics, strict=False)).get(camera) or by_rule

    def _check_remote(self) -> None:
        if self.backend == "remote" and not self.remote_url:
            raise ConfigError("backend remote needs a server; name it by remote_url, such as http://gpu-box:30000/v1")
        for name in ("remote_url", "remote_model", "remote_key_file", "remote_fallback"):
            if getattr(self, name) and self.backend != "remote":
                raise ConfigError(
                    f"{name} goes with backend remote alone, got backend {self.backend}; set it to remote"
                )

    def _check_topics(self) -> None:
        named = [topic for topic in self.camera_topics if topic]
        if len(set(named)) != len(named):
            raise ConfigError(f"camera_topics must differ, got {list(self.camera_topics)}")
        if self.camera_topics != ("",) and len(self.camera_topics) != len(self.cameras):
            raise ConfigError(
                f"camera_topics must have a topic for each of the {len(self.cameras)} cameras "
                f"{list(self.cameras)}, got {list(self.camera_topics)}; an empty one takes the default"
            )

    def num_frames_of(self, cameras: Sequence[str], answer_type: str = "") -> int:
        """Return how many frames a query about these cameras is shown that does not say so.

        Of each camera one at least, and of what is asked when a clip.
        """
        return max(self.num_frames, len(cameras), CLIP_FRAMES if answer_type == "when" else 1)


def bounds(config_type: type) -> dict[str, Bound]:
    """Return the bound of each field of a config dataclass, in order."""
    return {f.name: f.metadata["bound"] for f in dataclasses.fields(config_type)}


def check_fields(config: Any) -> None:
    """Check the type of every field of a config dataclass against its default's, and the value against its bound.

    A whole number is taken where the default is a fraction, and becomes one.

    Raises:
        ConfigError: a value of the wrong type, or outside its range or choices.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(field.default, float) and type(value) is int:
            value = float(value)
            object.__setattr__(config, field.name, value)
        if field.default is not dataclasses.MISSING and type(value) is not type(field.default):
            raise ConfigError(f"{field.name} must be {_kind(field.default)}, got {value!r}")
        _check(field.name, value, field.metadata["bound"])


def from_dict(config_type: type, values: Mapping[str, Any]) -> Any:
    """Build a config from plain values.

    Raises:
        ConfigError: an unknown key (near names are listed) or a value outside its rule.
    """
    known = bounds(config_type)
    for name in values:
        if name not in known:
            raise ConfigError(unknown_parameter(name, known))
    return config_type(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def unknown_parameter(name: str, known: Iterable[str]) -> str:
    """Return what to say of a name that is no parameter."""
    near = difflib.get_close_matches(name, list(known), n=3) or sorted(known)
    return f"unknown parameter {name!r}; did you mean one of {near}"


def replace(config: Any, changes: Mapping[str, Any]) -> Any:
    """Return a config with some values changed.

    Raises:
        ConfigError: as `from_dict`.
    """
    return from_dict(type(config), dataclasses.asdict(config) | dict(changes))


def _kind(default: Any) -> str:
    return "a list of names" if isinstance(default, tuple) else f"of type {type(default).__name__}"


def _check(name: str, value: Any, bound: Bound) -> None:
    if bound.choices and value not in bound.choices:
        raise ConfigError(f"{name} must be one of {list(bound.choices)}, got {value!r}")
    if bound.low is None or bound.high is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{name} must be a finite number, got {value!r}")
    if not bound.low <= value <= bound.high:
        raise ConfigError(f"{name} must lie in [{bound.low:g}, {bound.high:g}] {bound.unit}, got {value}")
