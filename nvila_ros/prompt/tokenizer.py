"""The tokenizer of a checkpoint, built from the files it ships.

Byte-level BPE of Qwen2's class. Text from users never becomes a special token: only the ChatML frame, which this
project writes itself, does. Media tokens that no file names get the ids that VILA gives them at load, behind the rows
of the saved embedding table, so ids come from the tokenizer and are never assumed.

Source: `vocab.json`, `merges.txt` and `added_tokens.json` as Qwen2's slow tokenizer saves them, or the one
`tokenizer.json` of the fast one, with `tokenizer_config.json` beside either; NVLabs/VILA `language_model/builder.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from nvila_ros.errors import CheckpointError
from nvila_ros.files import MAX_JSON_BYTES, read_bounded, read_json

# Splits text into words before BPE. Source: Qwen2's published tokenizer configuration.
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_NAMES = ("<|im_start|>", "<|im_end|>")
SENTINEL = "<vila/sentinel>"
MEDIA_NAMES = ("<image>", "<vila/video>")
FIX = "download the checkpoint's tokenizer files again"


class ChatTokenizer:
    """Encodes plain text and knows the ids of the ChatML frame and of media.

    Attributes:
        im_start: id that opens a turn.
        im_end: id that closes one.
        sentinel_id: id of VILA's `<vila/sentinel>`.
        image_id: id of `<image>`; like the other two often behind the embedding table, so never an input.
        video_id: id of `<vila/video>`.
        num_tokens: distinct tokens, media included: upstream's `len(tokenizer)`.
    """

    def __init__(self, bpe: Tokenizer, tokens: dict[str, int], special: Iterable[str]) -> None:
        self._text = bpe
        self._special = {name: tokens[name] for name in special}
        self._special_ids = set(self._special.values())
        self.im_start, self.im_end = (tokens[name] for name in SPECIAL_NAMES)
        media_ids = self.sentinel_id, self.image_id, self.video_id = [tokens[name] for name in (SENTINEL, *MEDIA_NAMES)]
        self.num_tokens = len(tokens)
        self._answer_ids = np.array(sorted(set(tokens.values()) - set(media_ids)), dtype=np.int64)

    @classmethod
    def from_folder(cls, folder: str | Path) -> ChatTokenizer:
        """Read the tokenizer files of a checkpoint: its `llm` folder, or its root in the flat layout.

        `vocab.json` with `merges.txt` takes precedence over `tokenizer.json`; added tokens are those of all files.

        Raises:
            CheckpointError: a file is missing, unreadable or not Qwen2's kind, two contradict each other, or the tokens
                of ChatML are nowhere.
        """
        folder = Path(folder)
        whole_path = folder / "tokenizer.json"
        whole = _read_json(whole_path) if whole_path.exists() else None
        if whole_path.exists() and not isinstance(whole, dict):
            raise CheckpointError(f"{whole_path} must hold a JSON object, got {type(whole).__name__}; {FIX}")
        vocab_path, vocab, merges = _text_model(folder, whole)
        added = _added_tokens(folder, whole)
        tokens = _unite([(vocab_path, vocab), *added])
        missing = [name for name in SPECIAL_NAMES if name not in tokens]
        if missing:
            raise CheckpointError(f"the tokenizer in {folder} must hold ChatML's tokens but lacks {missing}; {FIX}")
        special = [*SPECIAL_NAMES, SENTINEL, *MEDIA_NAMES, *(name for _, ids in added for name in ids)]
        return cls(build_bpe(vocab, merges), _with_media(folder, tokens), special)

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text; special tokens' names in it are ordinary characters."""
        return self._text.encode(text).ids

    def encode_marked(self, text: str) -> list[int]:
        """Return the ids of a text from the checkpoint itself: special tokens in it are special."""
        names = "|".join(re.escape(name) for name in sorted(self._special, key=len, reverse=True))
        pieces = [piece for piece in re.split(f"({names})", text) if piece]
        known = self._special
        return [i for piece in pieces for i in ([known[piece]] if piece in known else self.encode(piece))]

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids; added tokens and media are left out, broken UTF-8 becomes U+FFFD."""
        return self._text.decode([i for i in ids if i not in self._special_ids])

    def never_sampled(self, vocab_size: int) -> np.ndarray:
        """Return which of `vocab_size` logits are never sampled, (K,) int64, sorted; often none.

        They are the media tokens, whose rows were never trained, and rows that pad the table: no token owns them.
        """
        return np.setdiff1d(np.arange(vocab_size, dtype=np.int64), self._answer_ids)

    def token_bytes(self, vocab_size: int) -> list[bytes]:
        """Return the bytes of each of `vocab_size` ids; empty for added tokens, media and rows without a token."""
        byte_by_char = {char: byte for byte, char in enumerate(_byte_chars())}
        written = [b""] * vocab_size
        for name, idx in self._text.get_vocab().items():
            if idx < vocab_size and idx not in self._special_ids and byte_by_char.keys() >= set(name):
                written[idx] = bytes(byte_by_char[char] for char in name)
        return written


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


def _byte_chars() -> list[str]:
    """Return the character that stands for each byte in a byte-level vocabulary.

    Printable bytes of Latin-1 stand for themselves, the others for the characters from 256 on. Source: GPT-2's encoder.
    """
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in own else next(others)) for byte in range(0x100)]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn the error of a missing, truncated or malformed file into one that names it."""
    try:
        yield
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        needs = "a tokenizer is vocab.json and merges.txt, or tokenizer.json"
        raise CheckpointError(f"{path} is missing: {needs}; {FIX}") from error
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not laid out as a tokenizer's file: {error!r}; {FIX}") from error


def _read_json(path: Path) -> Any:
    with _reading(path):
        return read_json(path)


def _read_merge_lines(path: Path) -> list[str]:
    with _reading(path):
        lines = read_bounded(path, MAX_JSON_BYTES).decode().replace("\r\n", "\n").split("\n")
    return [line for line in lines[lines[0].startswith("#version") :] if line]


def _text_model(folder: Path, whole: Any) -> tuple[Path, dict[str, int], list[tuple[str, str]]]:
    """Return the file that holds the text tokens, these, and their merges."""
    vocab_path, merges_path, whole_path = (folder / name for name in ("vocab.json", "merges.txt", "tokenizer.json"))
    if whole is not None:
        _check_kind(whole_path, whole)
    if whole is None or (vocab_path.exists() and merges_path.exists()):
        found, merges = _read_json(vocab_path), _read_merge_lines(merges_path)
    else:
        vocab_path = merges_path = whole_path
        with _reading(whole_path):
            found, merges = whole["model"]["vocab"], whole["model"]["merges"]
    vocab = _checked_ids(vocab_path, found)
    missing = set(pre_tokenizers.ByteLevel.alphabet()) - vocab.keys()
    if missing:  # they would be dropped from prompts silently
        raise CheckpointError(f"{vocab_path}: every byte must have a token, but {sorted(missing)} have none; {FIX}")
    return vocab_path, vocab, _checked_merges(merges_path, merges, vocab)


def _check_kind(path: Path, whole: Any) -> None:
    """Refuse a `tokenizer.json` of another class, whose text this project would split in the wrong places."""
    with _reading(path):
        kind = whole["model"].get("type", "BPE")
        words = json.dumps(whole["pre_tokenizer"])
    if kind != "BPE" or json.dumps(QWEN2_WORDS) not in words:
        raise CheckpointError(f"{path} must be BPE of words as Qwen2 splits them, got {kind} and {words}; {FIX}")


def _added_tokens(folder: Path, whole: Any) -> list[tuple[Path, dict[str, int]]]:
    """Return each file that names added tokens, with its tokens."""
    added_path, whole_path, config_path = (
        folder / name for name in ("added_tokens.json", "tokenizer.json", "tokenizer_config.json")
    )
    said: list[tuple[Path, dict[str, int]]] = []
    if added_path.exists():
        said.append((added_path, _checked_ids(added_path, _read_json(added_path))))
    if whole is not None:
        with _reading(whole_path):
            found = {token["content"]: token["id"] for token in whole.get("added_tokens", [])}
        said.append((whole_path, _checked_ids(whole_path, found)))
    if config_path.exists():
        with _reading(config_path):
            by_id = _read_json(config_path).get("added_tokens_decoder", {})
            found = {token["content"]: int(idx) if idx.isdecimal() else idx for idx, token in by_id.items()}
        said.append((config_path, _checked_ids(config_path, found)))
    return said


def _checked_ids(path: Path, tokens: Any) -> dict[str, int]:
    with _reading(path):
        for name, idx in tokens.items():
            if type(idx) is not int or not 0 <= idx < 2**31:  # a bool is an int, too
                raise CheckpointError(f"{path}: the id of {name!r} must be a whole number, got {idx!r}; {FIX}")
    return tokens


def _checked_merges(path: Path, merges: Any, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Return merges, written "a b" or as pairs, as pairs."""
    pairs = []
    with _reading(path):
        for merge in merges:
            pair = tuple(merge.split(" ") if isinstance(merge, str) else merge)
            if len(pair) != 2 or not {*pair, "".join(pair)} <= vocab.keys():
                raise CheckpointError(f"{path}: a merge must be two tokens that join to a third, got {merge!r}; {FIX}")
            pairs.append(pair)
    return pairs


def _unite(said: list[tuple[Path, dict[str, int]]]) -> dict[str, int]:
    """Return the union of the ids of all files.

    Raises:
        CheckpointError: one name has two ids, or one id two names.
    """
    tokens: dict[str, int] = {}
    names: dict[int, str] = {}
    origin: dict[str, Path] = {}
    for path, found in said:
        for name, idx in found.items():
            if tokens.setdefault(name, idx) != idx or names.setdefault(idx, name) != name:
                other = name if tokens[name] != idx else names[idx]
                first = f"{origin[other]} says {other!r} is {tokens[other]}"
                raise CheckpointError(f"{first} but {path} says {name!r} is {idx}; use the files of one revision")
            origin.setdefault(name, path)
    return tokens


def _with_media(folder: Path, tokens: dict[str, int]) -> dict[str, int]:
    """Return the tokens with sentinel and media; new ones get VILA's ids, each the number of tokens before it."""
    tokens = dict(tokens)
    for name in (SENTINEL, *MEDIA_NAMES):
        tokens.setdefault(name, len(tokens))
    if len(set(tokens.values())) < len(tokens):
        gap = min(set(range(len(tokens))) - set(tokens.values()))
        raise CheckpointError(f"the tokenizer in {folder} must number its tokens without gaps, {gap} is one; {FIX}")
    return tokens
