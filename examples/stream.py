"""Print an answer as it is generated: python examples/stream.py [VIDEO]."""

import sys
from pathlib import Path

from nvila_ros import load, read_clip

CLIP = Path(__file__).with_name("clip.mp4")


def main(video: str = str(CLIP)) -> None:
    """Stream a description; Ctrl-C stops the model at its next token."""
    model = load("nvila-tiny")
    for piece in model.stream("Describe the scene.", read_clip(video, num_frames=8)):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
