"""The real node with a fake model that says whether the newest frame is bright."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from nvila_ros.ros.node import main
from nvila_ros.types import Answer, OnPiece, Query, ShouldStop
from nvila_ros.video.deferred import DeferredFrame
from tests.tiny import FakeModel


class Lamp(FakeModel):
    """Whatever is asked, it says yes where the newest frame is bright, and else no."""

    def _answer(
        self, query: Query, frames: Sequence[DeferredFrame], on_piece: OnPiece | None, should_stop: ShouldStop | None
    ) -> Answer:
        word = "yes" if frames[-1].image.mean() > 127 else "no"
        answer = super()._answer(dataclasses.replace(query, question=word), frames, on_piece, should_stop)
        return dataclasses.replace(answer, query=query)


def load_lamp(model: str, **options: object) -> Lamp:
    return Lamp()


if __name__ == "__main__":
    sys.exit(main(load=load_lamp))
