"""Pieces told as they come are the text told at once."""

from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.prompt.text_stream import BROKEN, TextStream


def decode(ids: list[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


@given(text=st.text(max_size=40))
def test_pieces_joined_are_the_text_and_never_hold_half_a_character(text: str) -> None:
    stream = TextStream(decode)

    pieces = [stream.push(byte) for byte in text.encode()]

    assert BROKEN in text or not any(BROKEN in piece for piece in pieces)
    assert "".join(pieces) + stream.flush() == text


@given(raw=st.binary(max_size=40))
def test_broken_bytes_are_told_too(raw: bytes) -> None:
    stream = TextStream(decode)

    told = "".join(stream.push(byte) for byte in raw) + stream.flush()

    assert told == decode(list(raw))
