"""Prompts in the templates of VILA 1.5, against the ids that upstream's own code gives for the same text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.errors import CheckpointError
from nvila_ros.prompt.chat import PLACEHOLDER, MediaTokens, PromptPart, ask, build_prompt
from nvila_ros.prompt.template import CHATML, LLAMA_3, VICUNA
from nvila_ros.prompt.tokenizer import NO_MEDIA_TOKEN, ChatTokenizer
from tests.golden_cases import CHECKPOINT, GOLDEN

VILA15 = GOLDEN / "vila15"
TEMPLATES = {"llama3_bos": LLAMA_3, "llama3_nobos": LLAMA_3, "vicuna": VICUNA}
TOKENIZERS = {name: ChatTokenizer.from_folder(VILA15 / name / "ckpt" / "llm") for name in TEMPLATES}
ROWS = [(name, row) for name in TEMPLATES for row in json.loads((VILA15 / name / "tokenization.json").read_text())]


def turns_of(tokenizer: ChatTokenizer, prompt: str) -> tuple[list[list[PromptPart]], list[str]] | None:
    """Return the user's parts and the answers of a prompt's text; None if it is not one that asks."""
    frame = tokenizer.template
    opening = frame.before_system + frame.system + frame.opening
    if not prompt.startswith(opening) or not prompt.endswith(frame.reply):
        return None
    said = prompt.removeprefix(opening).removesuffix(frame.reply).split(frame.turn_end + frame.next_turn)
    pairs = [each.split(frame.reply) for each in said]
    users = [parts_of(pair[0]) for pair in pairs]
    return users, [pair[1].strip() for pair in pairs[:-1]]


def parts_of(message: str) -> list[PromptPart]:
    parts: list[PromptPart] = []
    for i, text in enumerate(message.split("<image>")):
        parts += [MediaTokens((1,)), text] if i else [text]
    return parts


ASKED = [(name, row) for name, row in ROWS if turns_of(TOKENIZERS[name], row["prompt_text"])]


@pytest.mark.parametrize(("name", "row"), ASKED, ids=[f"{name}: {row['why']}" for name, row in ASKED])
def test_ids_are_upstreams(name: str, row: dict[str, Any]) -> None:
    tokenizer = TOKENIZERS[name]
    turns = turns_of(tokenizer, row["prompt_text"])
    assert turns is not None
    users, answers = turns
    is_stripped = str(users[-1][-1]) == str(users[-1][-1]).rstrip()

    ids = build_prompt(tokenizer, users[-1], list(zip(users, answers, strict=False))).tolist()

    want = [PLACEHOLDER if idx == NO_MEDIA_TOKEN else idx for idx in row["input_ids"]]
    assert ids == want if is_stripped else len(ids) < len(want)  # questions are stripped, as upstream's API does


def test_most_rows_are_compared() -> None:
    assert len(ASKED) == len(ROWS) - 3 * len(TEMPLATES) - 1  # without template, those in training, and M3's demo


@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_tell_the_template(name: str) -> None:
    tokenizer = TOKENIZERS[name]

    assert tokenizer.template is TEMPLATES[name]
    assert tokenizer.image_id == NO_MEDIA_TOKEN
    assert tokenizer.num_cut == (name == "llama3_nobos")
    assert len(tokenizer.first_ids) == (name != "llama3_nobos")
    assert set(tokenizer.named_ids) == set(tokenizer.template.tokens)
    assert ChatTokenizer.from_folder(CHECKPOINT / "llm").template is CHATML


@given(text=st.text(max_size=30), name=st.sampled_from(["<|eot_id|>", "<|begin_of_text|>", "</s>", "<s>", "<unk>"]))
@pytest.mark.parametrize("folder", TEMPLATES)
def test_special_tokens_in_a_question_are_spelled_out(folder: str, text: str, name: str) -> None:
    tokenizer = TOKENIZERS[folder]
    special = set(tokenizer.named_ids.values())

    assert not special & set(tokenizer.encode(text + name))
    found = [idx for idx in ask(tokenizer, [f"a{text}{name}b"], is_first=True) if idx in special]
    assert found == [idx for idx in ask(tokenizer, ["ab"], is_first=True) if idx in special]


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=30))
@pytest.mark.parametrize("folder", TEMPLATES)
def test_text_survives_the_way_there_and_back(folder: str, text: str) -> None:
    stream = TOKENIZERS[folder].text_stream()

    told = "".join(stream.push(idx) for idx in TOKENIZERS[folder].encode(text)) + stream.flush()

    assert told == text


@pytest.mark.parametrize("folder", TEMPLATES)
def test_bytes_of_tokens_are_those_of_the_text(folder: str) -> None:
    tokenizer = TOKENIZERS[folder]
    written = tokenizer.token_bytes(tokenizer.num_tokens)

    told = b"".join(written[idx] for idx in tokenizer.encode("Gr\u00fc\u00dfe, \u6771 12345\n"))

    assert told.decode().removeprefix(" " * (folder == "vicuna")) == "Gr\u00fc\u00dfe, \u6771 12345\n"


def test_stops_are_those_of_the_template_and_of_the_generation_config(tmp_path: Path) -> None:
    assert TOKENIZERS["llama3_nobos"].stop_ids == {353, 361}  # the file says 353 alone
    for path in (VILA15 / "llama3_bos" / "ckpt" / "llm").glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [353, 360]}')

    assert ChatTokenizer.from_folder(tmp_path).stop_ids == {353, 360, 361}

    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(CheckpointError, match=r"generation_config\.json: the id of .*eos_token_id"):
        ChatTokenizer.from_folder(tmp_path)


def test_file_that_is_no_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"pickle")

    with pytest.raises(CheckpointError, match=r"tokenizer\.model is no sentencepiece model"):
        ChatTokenizer.from_folder(tmp_path)
