"""A build's tokenizer is its checkpoint's, of every kind that there is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nvila_ros.builds.builder import copy_tokenizer
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.prompt.time_tokens import TIMES_FILE, time_token_names
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.training.save import save_checkpoint
from nvila_ros.training.tiny_when import NUM_TIME_TOKENS, SPEC, new_model, write_tokenizer
from tests.golden_cases import GOLDEN

CHECKPOINTS = sorted(GOLDEN.glob("**/ckpt"))


def built(path: Path, folder: Path) -> tuple[ChatTokenizer, ChatTokenizer]:
    """The tokenizers of a checkpoint and of a build of it."""
    checkpoint = open_checkpoint(path)
    folder.mkdir()
    copy_tokenizer(checkpoint, folder)
    return ChatTokenizer.from_folder(checkpoint.tokenizer_folder), ChatTokenizer.from_folder(folder / "tokenizer")


@pytest.mark.parametrize("path", CHECKPOINTS, ids=[str(each.relative_to(GOLDEN).parent) for each in CHECKPOINTS])
def test_it_reads_and_stops_alike(path: Path, tmp_path: Path) -> None:
    own, other = built(path, tmp_path / "build")

    assert own.encode("When does it stop?") == other.encode("When does it stop?")
    assert (own.named_ids, own.stop_ids, own.num_tokens) == (other.named_ids, other.stop_ids, other.num_tokens)


@pytest.mark.parametrize("template", ["<t{t}>", "<time {t}>"])
def test_it_tells_times_whatever_its_tokens_are_called(tmp_path: Path, template: str) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    save_checkpoint(new_model(0), tmp_path / "tokenizer", tmp_path / "checkpoint")
    for path in (tmp_path / "checkpoint").glob("**/*.json"):
        text = path.read_text()
        for t, name in enumerate(time_token_names(NUM_TIME_TOKENS)):
            text = text.replace(json.dumps(name), json.dumps(template.replace("{t}", str(t))))
        path.write_text(text.replace(json.dumps("<t{t}>"), json.dumps(template)))

    own, other = built(tmp_path / "checkpoint", tmp_path / "build")

    assert own.time_ids == other.time_ids == tuple(range(SPEC.decoder.vocab_size - NUM_TIME_TOKENS, 512))
    told = json.loads((tmp_path / "build" / "tokenizer" / TIMES_FILE).read_text())
    assert (told["num_time_tokens"], told["time_token_format"]) == (NUM_TIME_TOKENS, template)
