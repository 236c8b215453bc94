"""The real node with a fake model: what the tests start where the model's answers do not matter."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from nvila_ros.ros.node import main
from tests.tiny import load_fake

if __name__ == "__main__":
    sys.exit(main(load=load_fake))
