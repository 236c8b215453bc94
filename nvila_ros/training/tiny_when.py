"""nvila-tiny-when: nvila-tiny with time tokens, which says when something happens.

It starts as nvila-tiny with a row more for each time token.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.spec import ModelSpec
from nvila_ros.prompt.time_tokens import time_token_names
from nvila_ros.runtime.torch_engine import load_torch_model
from nvila_ros.training import tiny
from nvila_ros.training.save import copy_tokenizer, write_json
from nvila_ros.training.tiny_scale import start_path

NUM_TIME_TOKENS = 32
SPEC = replace(
    tiny.SPEC,
    name="nvila-tiny-when",
    decoder=replace(tiny.SPEC.decoder, vocab_size=tiny.VOCAB_SIZE + NUM_TIME_TOKENS),
)
_STD = 0.02  # of new rows, as of those that nvila-tiny began with


def new_model(seed: int) -> Nvila:
    """Return nvila-tiny with rows for time tokens, the same for the same seed."""
    torch.manual_seed(seed)
    return lengthen(load_torch_model(open_checkpoint(start_path())), SPEC)


def write_tokenizer(folder: Path) -> None:
    """Write nvila-tiny's tokenizer with the time tokens behind its own."""
    copy_tokenizer(start_path(), folder)
    path = folder / "added_tokens.json"
    added = json.loads(path.read_text(encoding="utf-8"))
    times = {name: tiny.VOCAB_SIZE + t for t, name in enumerate(time_token_names(NUM_TIME_TOKENS))}
    write_json(path, {**added, **times})


def lengthen(model: Nvila, spec: ModelSpec) -> Nvila:
    """Return a model of `spec` that is `model` with further rows of the vocabulary, drawn at random.

    Args:
        model: as `spec` but for the size of the vocabulary.
        spec: of the longer model, its head tied.
    """
    longer = Nvila(spec)
    state = model.state_dict()
    name = "llm.model.embed_tokens.weight"
    rows_VD = state[name]
    num_more = spec.decoder.vocab_size - len(rows_VD)
    state[name] = torch.cat([rows_VD, _STD * torch.randn(num_more, rows_VD.shape[1])])
    longer.load_state_dict(state)
    return longer
