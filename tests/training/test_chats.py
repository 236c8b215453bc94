"""Questions side by side are each what a prompt with it alone is, to the model as well."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nvila_ros.models.nvila import Nvila
from nvila_ros.paths import share_path
from nvila_ros.prompt.chat import PLACEHOLDER, MediaTokens, build_prompt
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.training import tiny
from nvila_ros.training.chats import PADDING, PREFIX, Rows, encode_branches, encode_chat, pad_chats
from nvila_ros.training.losses import decode_branches
from nvila_ros.training.token_labels import IGNORE
from nvila_ros.world.questions import Question

MEDIA = MediaTokens((5, "\n", 5, "\n"))
TURNS = [
    Question("color", "What color is the star?", "red"),
    Question("describe", "Describe the scene.", "a red star at the top left."),
    Question("count", "How many objects are there?", "1"),
]


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    return ChatTokenizer.from_folder(share_path("checkpoints", "nvila-tiny", "llm"))


def test_a_branch_is_the_prompt_of_its_question_alone(tokenizer: ChatTokenizer) -> None:
    chat = encode_branches(tokenizer, MEDIA, TURNS)

    owners, ids = np.array(chat.owners), np.array(chat.ids)
    for owner, turn in enumerate(TURNS, start=1):
        is_seen = (owners == PREFIX) | (owners == owner)
        told = [*tokenizer.encode(turn.answer), tokenizer.answer_end]
        whole = [*build_prompt(tokenizer, [MEDIA, turn.text]), *told]
        assert ids[is_seen].tolist() == whole[:-1]
        assert np.array(chat.positions)[is_seen].tolist() == list(range(len(whole) - 1))
        labels = np.array(chat.labels)[owners == owner]
        assert labels[labels != IGNORE].tolist() == told


def test_the_decoder_reads_a_branch_as_it_reads_the_question_alone(tokenizer: ChatTokenizer) -> None:
    model = tiny.new_model(0).eval()
    together = pad_chats([encode_branches(tokenizer, MEDIA, TURNS), encode_branches(tokenizer, MEDIA, TURNS[:1])])
    visual = torch.randn(10, model.spec.decoder.width)

    hidden_BLD = _read(model, together, visual)

    owners = together.owner_BL[0]
    for owner, turn in enumerate(TURNS, start=1):
        alone = _read_alone(tokenizer, model, turn, visual)
        is_seen = (owners == PREFIX) | (owners == owner)
        assert torch.allclose(hidden_BLD[0, is_seen], alone, atol=1e-5)
    first = together.owner_BL[1] != PADDING
    alone = _read_alone(tokenizer, model, TURNS[0], visual)
    assert torch.allclose(hidden_BLD[1, first], alone, atol=1e-5)


def _read_alone(tokenizer: ChatTokenizer, model: Nvila, turn: Question, visual: torch.Tensor) -> torch.Tensor:
    chat = encode_chat(tokenizer, MEDIA, [turn])
    return _read(model, pad_chats([chat]), visual)[0, : len(chat.ids)]


@torch.inference_mode()
def _read(model: Nvila, rows: Rows[np.ndarray], visual: torch.Tensor) -> torch.Tensor:
    told = Rows(*(torch.from_numpy(getattr(rows, name)) for name in rows.__slots__))
    ids_BL = told.ids_BL
    told = replace(told, answer_BT=torch.arange(ids_BL.shape[1]).expand_as(ids_BL))
    embeds = model.llm.embed(ids_BL.clamp(min=0))
    embeds = embeds.masked_scatter((ids_BL == PLACEHOLDER)[..., None], visual.repeat(len(ids_BL), 1))
    return decode_branches(model, embeds, told)[0]
