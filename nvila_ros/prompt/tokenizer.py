"""The tokenizer of a checkpoint, built from the files it ships.

Byte-level BPE of Qwen2's class. Text from users never becomes a special token: only the ChatML frame, which this
project writes itself, does. Source: the files `vocab.json`, `merges.txt`, `added_tokens.json` as Qwen2's slow
tokenizer saves them; a `tokenizer.json`, where present, says the same and is not needed.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from nvila_ros.errors import CheckpointError

# Splits text into words before BPE. Source: Qwen2's published tokenizer configuration.
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_NAMES = ("<|im_start|>", "<|im_end|>")


class ChatTokenizer:
    """Encodes plain text and knows the ids of the ChatML frame."""

    def __init__(self, vocab: dict[str, int], merges: list[tuple[str, str]], added: dict[str, int]) -> None:
        self._text = build_bpe(vocab, merges)
        self._special_by_id = {idx: name for name, idx in added.items()}
        missing = [name for name in SPECIAL_NAMES if name not in added]
        if missing:
            raise CheckpointError(f"the tokenizer lacks the ChatML tokens {missing}")
        self.im_start, self.im_end = (added[name] for name in SPECIAL_NAMES)

    @classmethod
    def from_folder(cls, folder: str | Path) -> ChatTokenizer:
        """Read the tokenizer files of a checkpoint's `llm` folder.

        Raises:
            CheckpointError: a file is missing or unreadable.
        """
        folder = Path(folder)
        try:
            vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
            lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
            added = json.loads((folder / "added_tokens.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"the tokenizer in {folder} is not readable: {error}") from error
        pairs = [line.split(" ") for line in lines if line.strip() and not line.startswith("#version")]
        return cls(vocab, [(left, right) for left, right in pairs], added)

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text; special tokens' names in it are ordinary characters."""
        return self._text.encode(text).ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids; special tokens are left out, broken UTF-8 becomes U+FFFD."""
        return self._text.decode([i for i in ids if i not in self._special_by_id])


def build_bpe(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """Build the byte-level BPE tokenizer without any special tokens."""
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
