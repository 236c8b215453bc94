"""Values that nobody should send: of the right type, and otherwise anything; all from one random generator."""

from __future__ import annotations

import array
import json
import random
import re
from typing import Any

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from nvila_ros.video.image_decoding import LAYOUT_BY_ENCODING

WORDS = ("Is there a red circle?", "Where is it?", "How many?", "<image>", "<|im_end|>", "\0", "\N{SNOWMAN}", " ", "")
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-30, 3e38, -3e38, float("inf"), float("-inf"), float("nan"), 0.5, 10.0)
SCHEMAS = (
    '{"type": "object", "properties": {"count": {"type": "integer"}}, "required": ["count"]}',
    '{"$ref": "#"}',
    '{"type": "string", "pattern": "(a+)+$"}',
    '{"type": "array", "items": {"type": "array", "minItems": 90000}, "minItems": 90000}',
    "[" * 3000,
    "{}",
    "null",
    "{",
)
FORMATS = ("jpeg", "png", "", "rgb8; jpeg compressed bgr8", "16UC1; compressedDepth png", "bayer_rggb8; png", "\0")
_SEQUENCE = re.compile(r"sequence<(.+?)(?:, (\d+))?>")
_RANGES = {
    **{f"int{bits}": (-(1 << bits - 1), (1 << bits - 1) - 1) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": (0, (1 << bits) - 1) for bits in (8, 16, 32, 64)},
}


def text(rng: random.Random) -> str:
    """Return a text: words of the model's language, of no language, rarely 10 MB long."""
    kind = rng.random()
    if kind < 0.5:
        return "".join(rng.choices(WORDS, k=rng.randrange(4)))
    if kind < 0.9:
        return "".join(chr(rng.choice((rng.randrange(128), rng.randrange(0xD800)))) for _ in range(rng.randrange(80)))
    return rng.choice(WORDS[:7]) * rng.choice((10, 1_000, 100_000, 700_000 if kind > 0.99 else 5_000))


def whole(rng: random.Random, kind: str) -> int:
    """Return a number of a type: small ones, its ends, any."""
    low, high = _RANGES[kind]
    return min(max(rng.choice((0, 0, 1, 2, 8, -1, low, high, rng.randint(low, high))), low), high)


def message(rng: random.Random, kind: type, share: float = 0.3) -> Any:
    """Return a message of a type; a share of its fields is filled with anything, the others are as they were made."""
    made = kind()
    for name, field in made.get_fields_and_field_types().items():
        if rng.random() < share:
            setattr(made, name, _field(rng, field, getattr(made, name)))
    return made


def _field(rng: random.Random, field: str, value: Any) -> Any:
    found = _SEQUENCE.fullmatch(field)
    if found:
        most = int(found[2] or 90)
        size = min(rng.choice((0, 1, 2, 3, 8, most)), most)
        return [_field(rng, found[1], _pictures(rng) if "CompressedImage" in found[1] else None) for _ in range(size)]
    if field == "sensor_msgs/CompressedImage":
        return value
    if field in _RANGES:
        return whole(rng, field)
    if field in ("float", "double"):
        return rng.choice((*FLOATS, rng.uniform(-100, 100)))
    if field == "boolean":
        return rng.random() < 0.5
    if field == "string":
        return (
            rng.choice((*SCHEMAS, "json", "choices", "integer", "yes_no", "change", "camera"))
            if rng.random() < 0.3
            else text(rng)
        )
    return message(rng, type(value), 0.7) if value is not None else None


def image(rng: random.Random) -> Image:
    """Return an image whose size, step, encoding, bytes and stamp agree only sometimes."""
    made = Image(encoding=rng.choice((*LAYOUT_BY_ENCODING, "rgb8", "rgb8", "32FC1", "", "yuv\0", "x" * 300)))
    made.width, made.height = (rng.choice((0, 1, 2, 7, 64, 640, 2**32 - 1)) for _ in range(2))
    made.step = rng.choice((0, made.width, min(3 * made.width, 2**32 - 1), rng.randrange(2**32)))
    made.is_bigendian = rng.choice((0, 1, 255))
    size = made.step * made.height if rng.random() < 0.7 else rng.randrange(5000)
    made.data = array.array("B", bytes(size if size < 4_000_000 else 7))
    _stamp(rng, made)
    return made


def _stamp(rng: random.Random, made: Any) -> None:
    made.header.stamp.sec = rng.choice((0, 1, -1, 2**31 - 1, -(2**31), 1_700_000_000, rng.randrange(2**31)))
    made.header.stamp.nanosec = rng.choice((0, 999_999_999, 2**32 - 1))
    made.header.frame_id = text(rng)[:300]


def picture(rng: random.Random) -> bytes:
    """Return the file of a picture, whole, cut off, damaged, or no such file."""
    pixels = np.frombuffer(rng.randbytes(3 * 40 * 56), np.uint8).reshape(40, 56, 3)
    content = bytearray(cv2.imencode(rng.choice((".jpg", ".png", ".webp", ".bmp", ".tiff")), pixels)[1].tobytes())
    kind = rng.random()
    if kind < 0.3:
        return bytes(content)
    if kind < 0.5:
        return bytes(content[: rng.randrange(len(content))])
    if kind < 0.9:
        for _ in range(rng.choice((1, 4, 40))):
            content[rng.randrange(rng.choice((64, len(content))))] = rng.randrange(256)
        return bytes(content)
    return rng.randbytes(rng.choice((0, 1, 100, 100_000)))


def _pictures(rng: random.Random) -> CompressedImage:
    made = CompressedImage(format=rng.choice(FORMATS), data=array.array("B", picture(rng)))
    if rng.random() < 0.2:
        _stamp(rng, made)
    return made


def question(rng: random.Random) -> String:
    """Return a question for the topic."""
    return String(data=text(rng))


def spoiled(rng: random.Random, content: bytes) -> bytes:
    """Return a file or serialized message cut off, with bytes changed, or with other bytes in it."""
    made = bytearray(content)
    kind = rng.randrange(4)
    if kind == 0:
        return bytes(made[: rng.randrange(len(made) + 1)])
    if kind == 1:
        at = rng.randrange(len(made))
        return bytes(made[:at]) + rng.randbytes(rng.randrange(200)) + bytes(made[at:])
    for _ in range(rng.choice((1, 3, 30))):
        made[rng.randrange(rng.choice((min(64, len(made)), len(made))))] = rng.randrange(256)
    return bytes(made)


def parameter(rng: random.Random) -> Any:
    """Return a value for a parameter, of any type."""
    return rng.choice(
        (rng.choice(FLOATS), whole(rng, "int64"), text(rng)[:5000], True, ["a", text(rng)[:50]], [1, 2], [0.5], b"x")
    )


def yaml_file(rng: random.Random) -> bytes:
    """Return a file of standing queries, spoiled."""
    query = {"name": "a", "question": "Is there a red circle?", "rate_hz": rng.choice(FLOATS), "trigger": "rising"}
    return spoiled(rng, json.dumps([query, {**query, "name": text(rng)[:80]}]).encode())
