"""The real node with a fake model that is loaded as soon as the file is there that the model's name gives."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from nvila_ros.ros.node import main
from tests.tiny import FakeModel, load_fake


def load_slowly(model: str, **options: object) -> FakeModel:
    while not Path(model).exists():
        time.sleep(0.01)
    return load_fake("fake", **options)


if __name__ == "__main__":
    sys.exit(main(load=load_slowly))
