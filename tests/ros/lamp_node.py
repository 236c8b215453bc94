"""The real node with a fake model that says whether the newest frame is bright."""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from nvila_ros.ros.node import main
from nvila_ros.types import Query
from nvila_ros.video.deferred import DeferredFrame
from tests.tiny import FakeModel


class Lamp(FakeModel):
    """Whatever is asked, it says yes where the newest frame is bright, and else no."""

    def words(self, query: Query, frames: Sequence[DeferredFrame]) -> list[str]:
        return ["yes" if frames[-1].image.mean() > 127 else "no"]


def load_lamp(model: str, **options: object) -> Lamp:
    return Lamp()


if __name__ == "__main__":
    sys.exit(main(load=load_lamp))
