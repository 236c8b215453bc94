"""Prompts against transformers' Qwen2 tokenizer, which reads upstream's prompt as one string with its specials."""

import re
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from nvila_ros.prompt.chat import PLACEHOLDER, MediaTokens, PromptPart, answer_frame, ask, build_prompt, open_chat
from nvila_ros.prompt.tokenizer import MEDIA_NAMES, SENTINEL, ChatTokenizer
from tests.golden_cases import ALL_CASES, CHECKPOINT, GOLDEN, load_told
from tests.prompt.conftest import NVILA_8B, Pair

HEAD = "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>"
TAIL = "<|im_end|>\n<|im_start|>assistant\n"
SPECIALS = (*NVILA_8B, SENTINEL)
WORDS = ("we'll", "I'M", "12,345", "\n", "\n\n", "\r\n", "\t", "  ", "...?!", "\u00bd", "\u0661\u0662", "\u4f60\u597d")
MARKS = ("e\u0301t\u00e9", "\u1100\u1161", "\u0e01\u0e33", "\U0001f600 ", "\U0001f468\u200d\U0001f469\u200d\U0001f467")

texts = st.lists(st.sampled_from(WORDS + MARKS) | st.text(max_size=12), max_size=8).map("".join)
literals = st.sampled_from([" <image> x", "<vila/video>\n", "\n<image><vila/video>y "])
# Parts as (name of the medium, "") or ("", text).
turns = st.lists(
    st.tuples(st.sampled_from(MEDIA_NAMES), st.just("")) | st.tuples(st.just(""), texts | literals), max_size=7
)


def ids_as_upstream(ours: ChatTokenizer, parts: list[PromptPart], names: list[str]) -> list[int]:
    """Return the prompt's ids with each media's one placeholder under the id of its name."""
    media_ids = iter([ours.image_id if name == "<image>" else ours.video_id for name in names])
    return [next(media_ids) if i == PLACEHOLDER else i for i in build_prompt(ours, parts).tolist()]


def as_upstream_reads(text: str) -> str:
    for name in MEDIA_NAMES:
        text = text.replace(name, "").strip() if name in text else text
    return text


@given(turn=turns)
@example(turn=[("<image>", ""), ("", "\n"), ("<image>", ""), ("", "\n"), ("", "\nwhy?")])
@example(turn=[("", "Look: "), ("<image>", ""), ("", " what is this ")])
@example(turn=[("", "  \n"), ("<vila/video>", ""), ("<image>", ""), ("", "so <image> what\n")])
def test_turn_is_one_string_to_upstream(pair: Pair, turn: list[tuple[str, str]]) -> None:
    parts = [MediaTokens((1,)) if name else text for name, text in turn]
    words = "".join(as_upstream_reads(text) for _, text in turn)
    assume(words.strip() and not any(name in words for name in (*MEDIA_NAMES, *SPECIALS)))

    ids = ids_as_upstream(pair.ours, parts, [name for name, _ in turn if name])

    value = "".join(name or as_upstream_reads(text) for name, text in turn).strip()
    assert ids == pair.theirs(f"{HEAD}user\n{value}{TAIL}").input_ids


@given(before=texts, name=st.sampled_from(SPECIALS), after=texts)
def test_specials_in_a_question_are_spelled_out(pair: Pair, before: str, name: str, after: str) -> None:
    question = (before + name + after).strip()
    assume(not any(media in question for media in MEDIA_NAMES))

    ids = build_prompt(pair.ours, [question]).tolist()

    head, tail = (pair.theirs(text).input_ids for text in (HEAD, TAIL))
    assert ids == [*head, *pair.theirs(f"user\n{question}", split_special_tokens=True).input_ids, *tail]


@given(question=texts.filter(str.strip))
def test_follow_up_continues_the_prompt(pair: Pair, question: str) -> None:
    assume(not any(name in question for name in (*MEDIA_NAMES, *SPECIALS)))

    ids = ask(pair.ours, [question], is_first=False)

    assert ids == pair.theirs(f"\n<|im_start|>user\n{question.strip()}{TAIL}").input_ids


def test_prompt_is_the_open_chat_and_the_answers_frame(pair: Pair) -> None:
    parts = [MediaTokens((2, "\n")), "why"]

    assert build_prompt(pair.ours, parts).tolist() == open_chat(pair.ours, parts) + answer_frame(pair.ours)


def test_text_of_a_layout_is_tokenized_on_its_own(pair: Pair) -> None:
    newline = pair.ours.encode("\n")
    media = MediaTokens((2, "\n", 1, "\n"))

    ids = build_prompt(pair.ours, [media, "\n", "\nwhy"]).tolist()

    start = ids.index(PLACEHOLDER)
    shown = [PLACEHOLDER] * 2 + newline + [PLACEHOLDER] + newline
    assert media.num_visual == 3
    assert ids[start : -len(answer_frame(pair.ours))] == shown + pair.ours.encode("\n\nwhy")


def test_ids_are_qwens(qwen_folder: Path) -> None:
    ids = build_prompt(ChatTokenizer.from_folder(qwen_folder), [MediaTokens((1, "\n")), "Describe the image."]).tolist()

    head = [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 151645, 198, 151644, 872, 198]
    assert ids == [*head, PLACEHOLDER, 198, 74785, 279, 2168, 13, 151645, 198, 151644, 77091, 198]


@pytest.mark.parametrize("case", ALL_CASES)
def test_input_ids_are_the_references(case: str) -> None:
    tokenizer = ChatTokenizer.from_folder(CHECKPOINT / "llm")
    turn = load_told(case)["prompt_text"].removeprefix(f"{HEAD}user\n").removesuffix(TAIL)
    texts_and_names = re.split(f"({'|'.join(MEDIA_NAMES)})", turn)
    parts = [MediaTokens((1,)) if part in MEDIA_NAMES else part for part in texts_and_names]

    ids = ids_as_upstream(tokenizer, parts, texts_and_names[1::2])

    assert [ids] == load_file(GOLDEN / f"{case}.fp32.safetensors")["input_ids"].tolist()
