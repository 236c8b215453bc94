"""Every layout of tokenizer files, and token ids against transformers' Qwen2 tokenizer."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import Qwen2Tokenizer

from nvila_ros.errors import CheckpointError
from nvila_ros.prompt.byte_pairs import build_bpe
from nvila_ros.prompt.tokenizer import MEDIA_NAMES, SENTINEL, ChatTokenizer
from tests.golden_cases import CHECKPOINT
from tests.prompt.conftest import NVILA_8B, Pair

LLM = CHECKPOINT / "llm"
VOCAB = json.loads((LLM / "vocab.json").read_text())
MERGES = [tuple(line.split(" ")) for line in (LLM / "merges.txt").read_text().splitlines()[1:]]
ADDED = json.loads((LLM / "added_tokens.json").read_text())
TEXT = "the 12,345 cats\n\n don't sit"
LAYOUTS = ("slow", "slow and fast", "fast", "fast with merges as strings", "slow and config", "fast and config")


def write_layout(folder: Path, layout: str, added: dict[str, int] = ADDED) -> Path:
    """Write the tiny reference checkpoint's text tokens and these added ones as some release of transformers would."""
    if "slow" in layout:
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(LLM / name, folder)
    if "config" in layout:
        decoder = {str(idx): {"content": name, "special": True} for name, idx in added.items()}
        write(folder / "tokenizer_config.json", {"added_tokens_decoder": decoder})
    elif "slow" in layout:
        write(folder / "added_tokens.json", added)
    if "fast" in layout:
        tokenizer = build_bpe(VOCAB, MERGES)
        if "config" not in layout:
            by_id = sorted(added, key=lambda name: added[name])
            tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in by_id])
        whole = json.loads(tokenizer.to_str())
        if "strings" in layout:
            whole["model"]["merges"] = [" ".join(merge) for merge in MERGES]
        write(folder / "tokenizer.json", whole)
    return folder


def write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


@given(text=st.text(max_size=60))
def test_ids_of_plain_text_are_qwen2s(pair: Pair, text: str) -> None:
    assert pair.ours.encode(text) == pair.theirs(text, split_special_tokens=True).input_ids


@given(text=st.text(max_size=40), name=st.sampled_from([*NVILA_8B, SENTINEL, *MEDIA_NAMES]))
def test_names_of_special_tokens_are_plain_text(pair: Pair, text: str, name: str) -> None:
    ids = pair.ours.encode(text + name)

    assert not set(pair.theirs.all_special_ids) & set(ids)
    assert pair.ours.decode(ids).endswith(name)


def test_decoding_leaves_special_tokens_out(pair: Pair) -> None:
    special = [pair.ours.answer_end, pair.ours.sentinel_id, pair.ours.image_id, pair.ours.video_id]

    assert pair.ours.decode([*special, *pair.ours.encode(TEXT), *special]) == TEXT


def test_every_token_writes_the_bytes_that_it_decodes_to_and_special_ones_write_none(pair: Pair) -> None:
    written = pair.ours.token_bytes(pair.ours.num_tokens + 5)

    assert [each.decode("utf-8", "replace") for each in written[:-5]] == [
        pair.ours.decode([i]) for i in range(pair.ours.num_tokens)
    ]
    assert b"".join(written[i] for i in pair.ours.encode(TEXT + "\U0001f600")).decode() == TEXT + "\U0001f600"
    assert not any(written[-5:])
    assert len(set(filter(None, written))) == sum(map(bool, written))


def test_new_media_tokens_get_the_ids_that_vila_gives_them(pair: Pair) -> None:
    want = pair.theirs.convert_tokens_to_ids([SENTINEL, *MEDIA_NAMES])

    assert [pair.ours.sentinel_id, pair.ours.image_id, pair.ours.video_id] == want
    assert pair.ours.num_tokens == len(pair.theirs)
    assert want[0] == {284: 289, 151643: 151648}[pair.theirs.vocab_size]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_say_the_same(layout: str, tmp_path: Path) -> None:
    want = ChatTokenizer.from_folder(LLM)

    got = ChatTokenizer.from_folder(write_layout(tmp_path, layout))

    assert got.encode(TEXT) == want.encode(TEXT)
    for name in ("named_ids", "stop_ids", "first_ids", "num_cut", "num_tokens"):
        assert getattr(got, name) == getattr(want, name), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_saved_media_tokens_keep_their_ids(layout: str, tmp_path: Path) -> None:
    added = ADDED | {"<vila/video>": 289, SENTINEL: 290, "<image>": 291}

    tokenizer = ChatTokenizer.from_folder(write_layout(tmp_path, layout, added))

    assert (tokenizer.video_id, tokenizer.sentinel_id, tokenizer.image_id) == (289, 290, 291)
    assert tokenizer.num_tokens == 292


def test_files_complete_each_other(tmp_path: Path) -> None:
    write_layout(tmp_path, "slow")
    write(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": {"289": {"content": "<image>"}}})

    tokenizer = ChatTokenizer.from_folder(tmp_path)

    assert (tokenizer.image_id, tokenizer.sentinel_id, tokenizer.video_id) == (289, 290, 291)


def test_added_tokens_may_stand_in_the_vocabulary_too(tmp_path: Path) -> None:
    write_layout(tmp_path, "slow")
    write(tmp_path / "vocab.json", VOCAB | ADDED)

    assert ChatTokenizer.from_folder(tmp_path).num_tokens == 292


@pytest.mark.slow
def test_whole_vocabulary_of_qwen_reads_alike_from_either_kind_of_file(qwen_folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(qwen_folder / name)
    theirs = Qwen2Tokenizer.from_pretrained(tmp_path)
    theirs.add_tokens([SENTINEL, *MEDIA_NAMES], special_tokens=True)

    for folder in (qwen_folder, tmp_path):
        tokenizer = ChatTokenizer.from_folder(folder)

        assert (tokenizer.num_tokens, tokenizer.image_id) == (len(theirs), theirs.convert_tokens_to_ids("<image>"))
        assert tokenizer.encode(TEXT) == theirs(TEXT).input_ids
        assert tokenizer.never_sampled(151936).tolist() == list(range(151669, 151936))


def test_rows_that_no_answer_may_pick(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer.from_folder(LLM)
    saved = ChatTokenizer.from_folder(write_layout(tmp_path, "slow", ADDED | {"<image>": 289, "[X]": 290}))

    assert tokenizer.never_sampled(289).tolist() == []
    assert tokenizer.never_sampled(291).tolist() == [289, 290]
    assert tokenizer.never_sampled(296).tolist() == [289, 290, 291, 292, 293, 294, 295]
    assert saved.never_sampled(291).tolist() == [289]
    assert saved.never_sampled(291).dtype == "int64"


def change(name: str, edit: Callable[[dict], object]) -> Callable[[Path], object]:
    """Return what rewrites one JSON file of a layout."""
    return lambda folder: write(folder / name, edit(json.loads((folder / name).read_text())))


def put(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def model(**changes: object) -> Callable[[Path], object]:
    return change("tokenizer.json", lambda whole: whole | {"model": whole["model"] | changes})


def config(idx: str, token: dict[str, str]) -> Callable[[Path], object]:
    return change("tokenizer_config.json", lambda old: {"added_tokens_decoder": {idx: token}})


BREAKAGES = [
    ("", lambda folder: None, r"vocab\.json is missing"),
    ("slow", lambda folder: (folder / "merges.txt").unlink(), r"merges\.txt is missing"),
    ("slow", put("vocab.json", b'{"a"'), r"vocab\.json is not laid out"),
    ("slow", put("vocab.json", b"\xff"), r"vocab\.json is not laid out"),
    ("slow", put("vocab.json", b"[]"), r"vocab\.json is not laid out"),
    ("slow", put("vocab.json", b"{}"), r"vocab\.json: every byte must have a token"),
    ("slow", change("vocab.json", lambda old: old | {"!": True}), r"vocab\.json: the id of '!' must be a whole number"),
    ("slow", put("added_tokens.json", b'{"[X]": 289.0}'), r"added_tokens\.json: the id of '\[X\]'"),
    ("slow", put("added_tokens.json", b"{}"), r"of each some are missing: .*qwen2.*im_start.*im_end.*llama_3.*eot_id"),
    ("slow", change("added_tokens.json", lambda old: old | {"[X]": 290}), r"without gaps, 289 is one"),
    ("slow", put("merges.txt", b"#version: 0.2\nt h e\n"), r"merges\.txt: a merge must be two tokens .*'t h e'"),
    ("slow", put("merges.txt", b"! z\n"), r"merges\.txt: a merge must be two tokens that join to a third, got '! z'"),
    ("slow and config", config("x", {"content": "y"}), r"tokenizer_config\.json: the id of 'y'"),
    ("slow and config", config("1", {}), r"tokenizer_config\.json is not laid out"),
    ("fast", model(merges=[["t"]]), r"tokenizer\.json: a merge must be two tokens"),
    ("fast", model(merges=[3]), r"tokenizer\.json is not laid out"),
    (
        "fast",
        model(type="Unigram"),
        r"tokenizer\.json must be BPE of words as Qwen2 or Llama-3 splits them, got Unigram",
    ),
    (
        "fast",
        change("tokenizer.json", lambda old: old | {"pre_tokenizer": None}),
        r"tokenizer\.json must be BPE of words",
    ),
]


@pytest.mark.parametrize(("layout", "breakage", "message"), BREAKAGES, ids=range(len(BREAKAGES)))
def test_broken_file_is_named(layout: str, breakage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    breakage(write_layout(tmp_path, layout))

    with pytest.raises(CheckpointError, match=f"{tmp_path}.*{message}"):
        ChatTokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("said", [{"290": {"content": "[PAD]"}}, {"288": {"content": "[X]"}}])
def test_contradiction_names_both_files(said: dict, tmp_path: Path) -> None:
    write_layout(tmp_path, "slow")
    write(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": said})

    with pytest.raises(CheckpointError, match=r"added_tokens\.json says '\[PAD\]' is 288 but .*tokenizer_config\.json"):
        ChatTokenizer.from_folder(tmp_path)


def test_special_tokens_in_a_text_of_the_checkpoint_are_special() -> None:
    tokenizer = ChatTokenizer.from_folder(LLM)

    ids = tokenizer.encode_marked("<|im_start|>user<image>\n")

    assert ids == [
        tokenizer.named_ids["<|im_start|>"],
        *tokenizer.encode("user"),
        tokenizer.image_id,
        *tokenizer.encode("\n"),
    ]
    assert tokenizer.encode_marked("") == []
    assert tokenizer.encode_marked("plain text") == tokenizer.encode("plain text")
