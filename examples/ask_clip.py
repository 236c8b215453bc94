"""Ask about a video: python examples/ask_clip.py [VIDEO [QUESTION]]."""

import sys
from pathlib import Path

from nvila_ros import load, read_clip

CLIP = Path(__file__).with_name("clip.mp4")


def main(video: str = str(CLIP), question: str = "Where does the square move?") -> None:
    """Ask one question about eight frames of a video."""
    model = load("nvila-tiny")
    answer = model.ask(question, read_clip(video, num_frames=8))
    print(answer.text)
    print(f"{len(answer.frames)} frames, first token after {answer.timings.ttft_s * 1e3:.0f} ms", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
