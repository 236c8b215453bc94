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


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3), st.data())
def test_a_text_ends_before_its_first_stop(text: str, stops: list[str], data: st.DataObject) -> None:
    """However the text comes in parts: what is given out is the text before the first stop, as a search finds it."""
    parts: list[str] = []
    while "".join(parts) != text:
        done = len("".join(parts))
        parts.append(text[done : done + data.draw(st.integers(1, 5))])
    stream = TextStream(lambda ids: "".join(parts[i] for i in ids), stops)
    told = ""
    for token in range(len(parts)):
        told += stream.push(token)
        if stream.is_stopped:
            break
    told += stream.flush()
    so_far = "".join(parts[: token + 1]) if parts else ""
    places = [so_far.find(stop) for stop in stops if stop in so_far]

    assert stream.is_stopped == any(stop in text for stop in stops)
    assert told == (so_far[: min(places)] if places else text)
