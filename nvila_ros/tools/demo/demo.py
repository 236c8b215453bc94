"""`nvila demo`: the real node and real cameras as processes of their own, asked over ROS, judged by the stamps.

Three cameras publish in turn: the synthetic world small and large, and a video file of it. Each is asked a fixed list
of questions over the node's service and action; what is true follows from the stamps in the answers. Nothing outside
this machine is reached, and everything that was started is stopped again, whatever happens.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rich.console import Console
from rich.markup import escape
from sensor_msgs.msg import Image

from nvila_ros.action import AskVideo
from nvila_ros.errors import ConfigError
from nvila_ros.msg import Answer as AnswerMessage
from nvila_ros.msg import Status
from nvila_ros.paths import images_profile
from nvila_ros.ros.camera_publisher import ros_args
from nvila_ros.ros.domain import free_domain
from nvila_ros.ros.messages import TRANSIENT_LOCAL, stamp_to_ns
from nvila_ros.runtime.loading import find_checkpoint
from nvila_ros.srv import Ask
from nvila_ros.tools.ask import tokens_per_s
from nvila_ros.tools.demo.questions import QUIZ, Item
from nvila_ros.tools.demo.report import Reply, Row, as_table, captions, summarize
from nvila_ros.tools.demo.session import DemoError, Interview, Show, choose_epoch
from nvila_ros.tools.demo.subprocesses import ChildError, Children
from nvila_ros.tools.options import add_model_options, print_json, whole
from nvila_ros.tools.picture import draw_answer, save_picture
from nvila_ros.types import NS_PER_S, FinishReason, Frame
from nvila_ros.world.frame_source import FilmSource, WorldSource, film_world

PICTURE_SUFFIXES = (".png", ".jpg")
START_S, CAMERA_S, ANSWER_S = 60.0, 20.0, 20.0
PLAIN_WIDTH = 110
"""Columns of the table where no terminal says how many there are."""
NODE = "/nvila"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("--checkpoint", default="nvila-tiny", help="folder or embedded name (default: %(default)s)")
    add_model_options(parser)
    parser.add_argument("--world", type=whole, default=0, metavar="SEED", help="seed of the first world (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("nvila_demo.png"), metavar="FILE", help="annotated picture")
    parser.add_argument("--quiet", action="store_true", help="print the JSON line alone")


def run(args: argparse.Namespace) -> int:
    """Perform, report, and return 0 only if every question came back with an answer."""
    find_checkpoint(args.checkpoint)
    if args.out.suffix.lower() not in PICTURE_SUFFIXES or not args.out.absolute().parent.is_dir():
        raise ConfigError(
            f"--out must be a file {' or '.join(PICTURE_SUFFIXES)} in a folder that exists, got {args.out}"
        )
    console = Console(highlight=False, quiet=args.quiet)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    environ = ros_environment()
    os.environ.update(environ)
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nvila_demo_") as name, Children(Path(name), environ) as children:
        try:
            stage = Stage(args, Path(name), children, console)
            rows, counts = stage.perform()
        except (ChildError, DemoError) as error:
            Console(stderr=True, highlight=False).print(f"[red]nvila demo: error: {escape(str(error))}")
            return 1
    num_asked = sum(map(len, QUIZ))
    num_dropped = counts["frames_lost"] + counts["frames_malformed"]
    console.print(as_table(rows))
    console.print(
        f"{counts['frames_received']} frames received, {num_dropped} dropped on the way (by the node's /diagnostics: "
        f"frames_lost + frames_malformed), {time.monotonic() - start_s:.1f} s in all"
    )
    console.print(f"picture: {args.out}")
    print_json(summarize(rows, num_asked, num_dropped))
    return 0 if len(rows) == num_asked and not any(row.reply.error for row in rows) else 1


def ros_environment() -> dict[str, str]:
    """Return the environment of a ROS graph of our own on this machine, with room for images in Fast DDS."""
    return {
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_DOMAIN_ID": str(free_domain()),
        **images_profile(),
    }


class Stage:
    """The node, the cameras and the one who asks."""

    def __init__(self, args: argparse.Namespace, folder: Path, children: Children, console: Console) -> None:
        self._args, self._folder, self._children, self._console = args, folder, children, console
        self._has_picture = False
        self._camera_start_s = 0.0  # what the last start took, expected of the next

    def perform(self) -> tuple[list[Row], dict[str, int]]:
        """Run all shows.

        Returns:
            One row per answer, and what the node counted.

        Raises:
            ChildError: the node or a camera ended.
            DemoError: something did not come in time.
        """
        model = {"model": self._args.checkpoint, "backend": self._args.backend, "threads": self._args.threads}
        start_s = time.monotonic()
        with Client(self._children) as client:
            with self._console.status("starting the node"):
                self._children.start("nvila_node", "nvila_ros.ros.node", ros_args(model))
                film = self._folder / "world.mp4"
                film_world(film, self._args.world + 2, 640, 480)  # meanwhile
                client.wait_for_node()
            node_start_s = time.monotonic() - start_s
            self._camera_start_s = node_start_s / 3
            self._console.print(f"node {NODE} is ready after {node_start_s:.1f} s")
            rows = [row for show in self._shows(film) for row in self._run_show(client, show)]
            return rows, client.wait_for_counts()

    def _shows(self, film: Path) -> list[Show]:
        seed = self._args.world
        video = Show(
            "video file 640x480",
            {"video": str(film)},
            lambda epoch_ns: FilmSource(film, seed + 2, aspect=4 / 3, epoch_ns=epoch_ns),
            QUIZ[2],
        )
        return [_world_show(seed, 640, 480, QUIZ[0]), _world_show(seed + 1, 1280, 720, QUIZ[1]), video]

    def _run_show(self, client: Client, show: Show) -> list[Row]:
        spawned_ns = client.now_ns()
        epoch_ns = choose_epoch(spawned_ns, self._camera_start_s)
        parameters = {**show.parameters, "epoch_ns": epoch_ns}
        camera = self._children.start("nvila_camera", "nvila_ros.ros.camera_publisher", ros_args(parameters))
        with self._console.status(f"starting the camera: {show.title}"):
            since_ns = client.wait_for_frame()
        self._camera_start_s = (since_ns - spawned_ns) / NS_PER_S
        self._console.print(f"camera {show.title} at 30 Hz")
        world = show.make_world(epoch_ns)
        interview = Interview(
            client, show.title, world, spawned_ns=spawned_ns, since_ns=since_ns, console=self._console
        )
        rows = interview.run(show.items)
        clip = next((row for row in rows if row.item.is_clip and not row.reply.error), None)
        if clip is not None and not self._has_picture:
            self._save_picture(clip, world)
        self._children.stop(camera)
        return rows

    def _save_picture(self, row: Row, world: WorldSource | FilmSource) -> None:
        frames = [Frame(image=world.frame_at(stamp_ns), stamp_ns=stamp_ns) for stamp_ns in row.reply.stamps_ns]
        save_picture(self._args.out, draw_answer(frames, row.asked.text, row.reply.text, captions(row)))
        self._has_picture = True


class Client:
    """The one who asks: a ROS node that watches over the children while it waits."""

    def __init__(self, children: Children) -> None:
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        self._children = children
        self._node = rclpy.create_node("nvila_demo")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._asks = self._node.create_client(Ask, f"{NODE}/ask")
        self._goals = ActionClient(self._node, AskVideo, f"{NODE}/ask_video")
        self._states: list[int] = []
        self._node.create_subscription(
            Status, f"{NODE}/status", lambda told: self._states.append(told.state), TRANSIENT_LOCAL
        )
        self._counts: list[dict[str, int]] = []
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 1)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *args: object) -> None:
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.try_shutdown()

    def now_ns(self) -> int:
        """Return the ROS clock."""
        return int(self._node.get_clock().now().nanoseconds)

    def rest(self, duration_s: float) -> None:
        """Do nothing but take in what comes, for this long."""
        end_s = time.monotonic() + duration_s
        while time.monotonic() < end_s:
            self._turn()

    def wait_for_node(self) -> None:
        """Wait until the node is there and its model is loaded."""
        doors = (self._asks.service_is_ready, self._goals.server_is_ready)
        self._wait(lambda: all(is_ready() for is_ready in doors), START_S, "the node's start")
        self._wait(lambda: Status.READY in self._states, START_S, "loading the model")

    def wait_for_frame(self) -> int:
        """Wait for an image and return its stamp."""
        stamps: list[int] = []
        qos = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)
        images = self._node.create_subscription(
            Image, "image", lambda image: stamps.append(stamp_to_ns(image.header.stamp)), qos
        )
        self._wait(lambda: bool(stamps), CAMERA_S, "the camera's first frame")
        self._node.destroy_subscription(images)
        return stamps[0]

    def wait_for_counts(self) -> dict[str, int]:
        """Wait for the node's next diagnostics and return its counts of frames."""
        self._counts.clear()
        self._wait(lambda: bool(self._counts), ANSWER_S, "the node's diagnostics")
        return self._counts[-1]

    def ask(self, item: Item, text: str, on_piece: Callable[[str], None]) -> Reply:
        """Ask through the item's door; the action tells each piece of the answer as it comes.

        Raises:
            ChildError: the node or a camera ended.
            DemoError: no answer came in time.
        """
        fields = {
            "question": text,
            "num_frames": item.num_frames,
            "window_s": item.window_s,
            "max_tokens": 64,
        }
        if item.door == "service":
            return _reply(self._result(self._asks.call_async(Ask.Request(**fields)), ANSWER_S, text).answer)

        def on_feedback(message: Any) -> None:
            on_piece(message.feedback.token.piece)

        goal = AskVideo.Goal(**fields)
        handle = self._result(self._goals.send_goal_async(goal, feedback_callback=on_feedback), ANSWER_S, text)
        if not handle.accepted:
            raise DemoError(f"the node took no goal for {text!r}")
        return _reply(self._result(handle.get_result_async(), ANSWER_S, text).result.answer)

    def _wait(self, is_done: Callable[[], bool], timeout_s: float, what: str) -> None:
        end_s = time.monotonic() + timeout_s
        while not is_done():
            if time.monotonic() > end_s:
                raise DemoError(f"{what} did not come within {timeout_s:g} s")
            self._turn()

    def _turn(self) -> None:
        self._children.check()
        self._executor.spin_once(timeout_sec=0.02)

    def _result(self, future: Any, timeout_s: float, what: str) -> Any:
        self._wait(future.done, timeout_s, what)
        return future.result()

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == NODE:
                self._counts[:] = [{v.key: int(v.value) for v in status.values if v.key.startswith("frames_")}]


def _world_show(seed: int, width: int, height: int, items: tuple[Item, ...]) -> Show:
    return Show(
        f"world {width}x{height}",
        {"world": seed, "width": width, "height": height},
        lambda epoch_ns: WorldSource(seed, width, height, epoch_ns=epoch_ns),
        items,
    )


def _reply(answer: AnswerMessage) -> Reply:
    reason = FinishReason(answer.finish_reason)
    return Reply(
        text=answer.text,
        error="" if reason.is_answered else f"{reason.name}: {answer.error}",
        stamps_ns=tuple(map(stamp_to_ns, answer.stamps)),
        age_s=answer.age_s,
        ttft_s=answer.ttft_s,
        tokens_per_s=tokens_per_s(answer.num_answer_tokens, answer.decode_s),
        model=f"{answer.model} {answer.backend} {answer.precision}",
    )


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
