"""Token ids against transformers' Qwen2 tokenizer built from the same files."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2Tokenizer

from nvila_ros.errors import CheckpointError, QueryError
from nvila_ros.prompt.chat import PLACEHOLDER, Media, answer_frame, build_prompt, next_turn, open_chat
from nvila_ros.prompt.tokenizer import ChatTokenizer
from tests.golden_cases import CHECKPOINT

LLM = CHECKPOINT / "llm"
SPECIALS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "[BOS]", "[PAD]", "<image>", "<vila/video>")


@pytest.fixture(scope="module")
def ours() -> ChatTokenizer:
    return ChatTokenizer.from_folder(LLM)


@pytest.fixture(scope="module")
def theirs() -> Qwen2Tokenizer:
    merges = (LLM / "merges.txt").read_text().splitlines()[1:]
    vocab = json.loads((LLM / "vocab.json").read_text())
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[tuple(line.split(" ")) for line in merges])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


plain_text = st.text(max_size=60).filter(lambda text: not any(name in text for name in SPECIALS))


@settings(max_examples=200, deadline=None)
@given(
    text=plain_text
    | st.sampled_from(["the 12,345 cats\n\n sat", "  don't\r\n\tthe", "e\u0301t\u00e9 \u4f60\u597d \U0001f600 "])
)
def test_plain_text_gets_the_ids_of_qwen2s_tokenizer(ours: ChatTokenizer, theirs: Qwen2Tokenizer, text: str) -> None:
    assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids


@settings(max_examples=100, deadline=None)
@given(before=plain_text, name=st.sampled_from(SPECIALS), after=plain_text)
def test_names_of_special_tokens_in_a_question_are_plain_text(
    ours: ChatTokenizer, before: str, name: str, after: str
) -> None:
    special = set(json.loads((LLM / "added_tokens.json").read_text()).values())

    ids = ours.encode(before + name + after)

    assert not special & set(ids)
    assert name in ours.decode(ids)


def test_prompt_is_the_chat_template_with_media(ours: ChatTokenizer, theirs: Qwen2Tokenizer) -> None:
    ids = build_prompt(ours, "  Describe the image.\n", Media((3, 3))).tolist()

    first, last = ids.index(PLACEHOLDER), len(ids) - ids[::-1].index(PLACEHOLDER)
    assert ids[first:last] == [PLACEHOLDER] * 3 + ours.encode("\n") + [PLACEHOLDER] * 3
    # the template's two halves, told by a tokenizer that reads the specials
    assert_ids_spell(ids[:first], "system\nYou are a helpful assistant", "user\n", ours)
    assert ids[last:] == [*ours.encode("\n"), *ours.encode("Describe the image."), *answer_frame(ours)]


def assert_ids_spell(ids: list[int], system: str, user: str, ours: ChatTokenizer) -> None:
    want = [ours.im_start, *ours.encode(system), ours.im_end, *ours.encode("\n"), ours.im_start, *ours.encode(user)]
    assert ids == want


def test_question_after_a_tiled_image_merges_with_its_newline(ours: ChatTokenizer) -> None:
    ids = build_prompt(ours, "why", Media((2, 2), has_text_newline=True)).tolist()

    newline = ours.encode("\n")
    start = ids.index(PLACEHOLDER)
    image = [PLACEHOLDER, PLACEHOLDER, *newline]
    assert ids[start : -len(answer_frame(ours))] == [*image, *newline, *image, *ours.encode("\nwhy")]


def test_follow_up_continues_the_first_turn(ours: ChatTokenizer) -> None:
    first = open_chat(ours, Media(), "one") + answer_frame(ours)

    second = next_turn(ours, "two")

    assert second == [*ours.encode("\n"), ours.im_start, *ours.encode("user\ntwo")]
    assert first[-1] == ours.encode("assistant\n")[-1]


@pytest.mark.parametrize("question", ["", "  \n\t"])
def test_empty_question_is_refused(ours: ChatTokenizer, question: str) -> None:
    with pytest.raises(QueryError, match="must hold text"):
        build_prompt(ours, question, Media())


def test_unreadable_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        ChatTokenizer.from_folder(tmp_path)
