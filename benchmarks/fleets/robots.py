"""Robots in one process: each has the buffer, queue, worker, standing queries and remote model of a real node.

Each comes from an address of its own (127.0.1.x), as robots do, and its clock is a little off those of the others,
since they were not started together. One thread shows frames and asks what is due, for all of them.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nvila_ros.config import NodeConfig
from nvila_ros.remote.model import LocalModel, RemoteModel
from nvila_ros.remote.settings import RemoteSettings
from nvila_ros.serving.answering import Answering
from nvila_ros.standing.query import TICK_NS, StandingQuery
from nvila_ros.standing.service import StandingService
from nvila_ros.types import NS_PER_S, Answer, FinishReason, Frame, Piece, Query
from nvila_ros.video.deferred import decode_raw
from nvila_ros.world.live_world import LiveWorld
from nvila_ros.world.rendering import render

WIDTH, HEIGHT = 160, 120
CLIP_FRAMES, CLIP_S = 8, 2.0
STANDING_HZ = 1.0
ASK_EVERY_S = 5.0
QUESTIONS = ("What do you see?", "Is there a circle?", "How many objects are there?")


@dataclass(frozen=True, slots=True)
class FleetAnswer:
    """An answer that a robot got.

    Attributes:
        at_s: steady clock.
        robot: whose.
        reason: why it ended.
        age_s: of its newest frame then.
        backend: that gave it.
        is_standing: whether a standing query asked.
    """

    at_s: float
    robot: int
    reason: FinishReason
    age_s: float
    backend: str
    is_standing: bool


class FleetRobot:
    """One robot.

    Args:
        index: among all.
        num_robots: all of them.
        settings: of the server.
        fallback: answers while the server does not.

    Attributes:
        answers: so far.
        model: that asks the server.
    """

    def __init__(self, index: int, num_robots: int, settings: RemoteSettings, fallback: LocalModel | None) -> None:
        config = NodeConfig(num_frames=CLIP_FRAMES, window_s=CLIP_S, buffer_s=4.0, past_s=0.0, max_tokens=24)
        self.index, self.answers = index, list[FleetAnswer]()
        self._off_ns = index * round(NS_PER_S / STANDING_HZ) // num_robots
        self._answering = Answering(lambda: config, str, self._clock_ns, decode_raw)
        self._answering.listeners.append(self)
        self.model = RemoteModel(settings, fallback)
        self._worker = self._answering.make_worker(self.model)
        self._standing = StandingService(self._answering, lambda: True)
        self._clip = _clip(index)
        self._num_shown, self._asked_s = 0, time.monotonic() - ASK_EVERY_S * (1 - index / num_robots)

    def start(self) -> None:
        """Begin to answer."""
        self._worker.start()
        query = StandingQuery(name="star", question="Is there a star?", rate_hz=STANDING_HZ, trigger="rising")
        self._standing.add(query, lambda error: None)

    def step(self) -> None:
        """Show a frame, and ask what is due."""
        image = self._clip[self._num_shown % len(self._clip)]
        self._answering.buffer.push(Frame(image=image, stamp_ns=self._clock_ns()).raw)
        self._num_shown += 1
        self._answering.expire()
        self._standing.tick()
        if time.monotonic() - self._asked_s >= ASK_EVERY_S:
            self._asked_s += ASK_EVERY_S
            question = QUESTIONS[self._num_shown % len(QUESTIONS)]
            query = Query(
                query_id=self._answering.new_id(),
                question=question,
                num_frames=CLIP_FRAMES,
                window_s=CLIP_S,
                cameras=("camera",),
                max_tokens=24,
                accepted_ns=time.monotonic_ns(),
            )
            self._answering.submit([self._answering.request(query)])

    def on_answer(self, answer: Answer) -> None:
        """Note an answer."""
        self.answers.append(
            FleetAnswer(
                at_s=time.monotonic(),
                robot=self.index,
                reason=answer.finish_reason,
                age_s=self._answering.age_s(answer.newest),
                backend=answer.backend,
                is_standing=bool(answer.query.standing),
            )
        )

    def on_piece(self, piece: Piece) -> None:
        """Pieces are not looked at."""

    def close(self) -> None:
        """End all that waits."""
        self._answering.close()

    def join(self) -> None:
        """Wait for the end of the worker."""
        self._worker.join()
        self._standing.close()

    def _clock_ns(self) -> int:
        return time.time_ns() + self._off_ns


@contextlib.contextmanager
def running_fleet(
    url: str, num_robots: int, fallbacks: Sequence[LocalModel] = (), *, timeout_s: float = 10.0
) -> Iterator[list[FleetRobot]]:
    """Let robots ask a server until the end of the block.

    Args:
        url: of the server.
        num_robots: at most 250.
        fallbacks: one for each robot, or none.
        timeout_s: how long the server may be silent.
    """
    robots = [
        FleetRobot(
            index,
            num_robots,
            RemoteSettings(url=f"{url}/v1", timeout_s=timeout_s, source=f"127.0.1.{index + 1}"),
            fallbacks[index] if fallbacks else None,
        )
        for index in range(num_robots)
    ]
    stop = threading.Event()

    def drive() -> None:
        while not stop.wait(TICK_NS / NS_PER_S):
            for robot in robots:
                robot.step()

    driver = threading.Thread(target=drive, name="fleet")
    for robot in robots:
        robot.start()
    driver.start()
    try:
        yield robots
    finally:
        stop.set()
        driver.join()
        for robot in robots:
            robot.close()
        for robot in robots:
            robot.join()


def _clip(index: int) -> list[np.ndarray]:
    """Return two seconds that this robot alone sees, over and over."""
    world = LiveWorld(index)
    scene = world.scene_at(0.0)[1]
    return [render(scene, t_s, WIDTH, HEIGHT) for t_s in np.linspace(0.0, min(world.scene_s, CLIP_S), 20)]
