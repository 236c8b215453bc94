"""Choose among answers, with probabilities: python examples/choices.py [VIDEO]."""

import sys
from pathlib import Path

from nvila_ros import load, read_clip

CLIP = Path(__file__).with_name("clip.mp4")


def main(video: str = str(CLIP)) -> None:
    """Ask three closed questions about one clip; only the first one encodes its frames."""
    model = load("nvila-tiny")
    frames = read_clip(video, num_frames=8)
    for question, choices in (
        ("Is there a star?", ["yes", "no"]),
        ("What color is the square?", ["red", "green", "yellow"]),
        ("Which way is the triangle moving?", ["left", "right", "up", "down", "still"]),
    ):
        answer = model.ask(question, frames, choices=choices)
        shares = ", ".join(f"{c} {p:.3f}" for c, p in zip(answer.choices, answer.probabilities, strict=True))
        print(f"{question} {answer.text} ({shares}; {answer.counts.num_frames_encoded} frames encoded)")


if __name__ == "__main__":
    main(*sys.argv[1:])
