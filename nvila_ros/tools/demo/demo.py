"""`nvila demo`: the real node and real cameras as child processes, asked over ROS, checked by the stamps.

Three cameras publish one after the other: the synthetic world small and large, and a video file of it. Each is asked a
fixed list of questions by the node's service and action. Which answer is true follows from the stamps in the answer.
Nothing outside this machine is reached, and every process that was started is stopped again, whatever happens.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from nvila_ros.errors import ConfigError, NvilaError
from nvila_ros.ros.camera_publisher import ros_args
from nvila_ros.ros.demo_client import DemoClient
from nvila_ros.runtime.loading import find_checkpoint
from nvila_ros.tools.demo.graph import open_console, own_graph
from nvila_ros.tools.demo.questions import QUIZ, QuizItem
from nvila_ros.tools.demo.report import QuizResult, as_table, captions, summarize
from nvila_ros.tools.demo.session import CameraSession, DemoCamera, DemoError, choose_epoch
from nvila_ros.tools.demo.subprocesses import ChildError, Children
from nvila_ros.tools.demo.web import show_web
from nvila_ros.tools.options import add_model_options, print_json, whole
from nvila_ros.tools.picture import draw_answer, save_picture
from nvila_ros.types import NS_PER_S, Frame
from nvila_ros.world.frame_source import FilmSource, WorldSource, film_world

PICTURE_SUFFIXES = (".png", ".jpg")
START_S, CAMERA_S, ANSWER_S = 60.0, 20.0, 20.0
NODE = "/nvila"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("--checkpoint", default="nvila-tiny", help="folder or embedded name (default: %(default)s)")
    add_model_options(parser)
    parser.add_argument("--world", type=whole, default=0, metavar="SEED", help="seed of the first world (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("nvila_demo.png"), metavar="FILE", help="annotated picture")
    parser.add_argument("--web", action="store_true", help="go on, with a page in the browser, until interrupted")
    parser.add_argument("--port", type=whole, default=8000, help="of the page (default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="print the JSON line alone")


def run(args: argparse.Namespace) -> int:
    """Run the demo and report it; returns 0 only if every question got an answer."""
    find_checkpoint(args.checkpoint)
    if args.out.suffix.lower() not in PICTURE_SUFFIXES or not args.out.absolute().parent.is_dir():
        raise ConfigError(
            f"--out must be a file {' or '.join(PICTURE_SUFFIXES)} in a folder that exists, got {args.out}"
        )
    console = open_console(args.quiet)
    start_s = time.monotonic()
    with own_graph("nvila_demo") as (folder, children):
        try:
            if args.web:
                show_web(children, model_parameters(args), args.world, args.port, console)
            results, counts = Demo(args, folder, children, console).perform()
        except (ChildError, DemoError, NvilaError) as error:
            Console(stderr=True, highlight=False).print(f"[red]nvila demo: error: {escape(str(error))}")
            return 1
    num_asked = sum(map(len, QUIZ))
    num_dropped = counts["frames_lost"] + counts["frames_malformed"]
    console.print(as_table(results))
    console.print(
        f"{counts['frames_received']} frames received, {num_dropped} lost or malformed (by the node's /diagnostics), "
        f"{time.monotonic() - start_s:.1f} s in all"
    )
    console.print(f"picture: {args.out}")
    print_json(summarize(results, num_asked, num_dropped))
    return 0 if len(results) == num_asked and all(result.answer is not None for result in results) else 1


def model_parameters(args: argparse.Namespace) -> dict[str, Any]:
    """Return the node's parameters that name its model."""
    return {"model": args.checkpoint, "backend": args.backend, "precision": args.precision, "threads": args.threads}


class Demo:
    """The node, the cameras and the client that asks."""

    def __init__(self, args: argparse.Namespace, folder: Path, children: Children, console: Console) -> None:
        self._args, self._folder, self._children, self._console = args, folder, children, console
        self._has_picture = False
        self._camera_start_s = 0.0  # how long the last one took, expected of the next

    def perform(self) -> tuple[list[QuizResult], dict[str, int]]:
        """Ask every camera its questions.

        Returns:
            One result per question, and the node's counts of frames.

        Raises:
            ChildError: the node or a camera ended.
            DemoError: something did not come in time.
            NvilaError: the node is not there, or has no model.
        """
        model = model_parameters(self._args)
        start_s = time.monotonic()
        with DemoClient(NODE, self._children.check, start_s=START_S, answer_s=ANSWER_S) as client:
            with self._console.status("starting the node"):
                self._children.start("nvila_node", "nvila_ros.ros.node", ros_args(model))
                film = self._folder / "world.mp4"
                film_world(film, self._args.world + 2, 640, 480)  # meanwhile
                client.wait_for_node()
            node_start_s = time.monotonic() - start_s
            self._camera_start_s = node_start_s / 3
            self._console.print(f"node {NODE} is ready after {node_start_s:.1f} s")
            results = [result for camera in self._cameras(film) for result in self._run_camera(client, camera)]
            return results, client.wait_for_counts()

    def _cameras(self, film: Path) -> list[DemoCamera]:
        seed = self._args.world
        video = DemoCamera(
            "video file 640x480",
            {"video": str(film)},
            lambda epoch_ns: FilmSource(film, seed + 2, aspect=4 / 3, epoch_ns=epoch_ns),
            QUIZ[2],
        )
        return [_world_camera(seed, 640, 480, QUIZ[0]), _world_camera(seed + 1, 1280, 720, QUIZ[1]), video]

    def _run_camera(self, client: DemoClient, camera: DemoCamera) -> list[QuizResult]:
        spawned_ns = client.now_ns()
        epoch_ns = choose_epoch(spawned_ns, self._camera_start_s)
        parameters = {**camera.parameters, "epoch_ns": epoch_ns}
        child = self._children.start("nvila_camera", "nvila_ros.ros.camera_publisher", ros_args(parameters))
        with self._console.status(f"starting the camera: {camera.title}"):
            since_ns = client.wait_for_frame(CAMERA_S)
        self._camera_start_s = (since_ns - spawned_ns) / NS_PER_S
        self._console.print(f"camera {camera.title} at 30 Hz")
        world = camera.make_world(epoch_ns)
        session = CameraSession(
            client, camera.title, world, spawned_ns=spawned_ns, since_ns=since_ns, console=self._console
        )
        results = session.run(camera.items)
        self._save_picture(results, world)
        self._children.stop(child)
        return results

    def _save_picture(self, results: list[QuizResult], world: WorldSource | FilmSource) -> None:
        """Save a picture of the first answer about a clip."""
        for result in results:
            if self._has_picture or result.answer is None or not result.item.is_clip:
                continue
            frames = [Frame(image=world.frame_at(stamp_ns), stamp_ns=stamp_ns) for stamp_ns in result.stamps_ns]
            notes = captions(result, result.answer)
            save_picture(self._args.out, draw_answer(frames, result.asked.text, result.answer.text, notes))
            self._has_picture = True


def _world_camera(seed: int, width: int, height: int, items: tuple[QuizItem, ...]) -> DemoCamera:
    return DemoCamera(
        f"world {width}x{height}",
        {"world": seed, "width": width, "height": height},
        lambda epoch_ns: WorldSource(seed, width, height, epoch_ns=epoch_ns),
        items,
    )
