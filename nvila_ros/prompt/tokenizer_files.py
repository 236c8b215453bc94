"""Read the files of a tokenizer, and refuse what contradicts itself or is of an unknown kind.

Source: `vocab.json`, `merges.txt` and `added_tokens.json` as Qwen2's slow tokenizer saves them, or the one
`tokenizer.json` of a fast one, or sentencepiece's `tokenizer.model`, with `tokenizer_config.json` beside either.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tokenizers import pre_tokenizers

from nvila_ros.errors import CheckpointError
from nvila_ros.files import MAX_JSON_BYTES, read_bounded, read_json
from nvila_ros.prompt.byte_pairs import QWEN2, WORD_KINDS, BytePairs, WordKind, build_bpe
from nvila_ros.prompt.sentence_pieces import SentencePieces

FIX = "download the checkpoint's tokenizer files again"


class TextModel(Protocol):
    """Plain text to ids and back."""

    @property
    def front(self) -> str:
        """What `encode` puts before a text, and `decode` leaves there."""
        ...

    def encode(self, text: str, is_start: bool) -> list[int]:
        """Return the ids of a text; `is_start` where nothing stands before it in its piece of the prompt."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; broken UTF-8 becomes U+FFFD."""
        ...

    def token_bytes(self) -> dict[int, bytes]:
        """Return the bytes that each token of text stands for."""
        ...


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What the files of a tokenizer say.

    Attributes:
        text: encodes plain text.
        tokens: ids by name, of all files.
        added: names of the tokens that are no text.
        adds: name of the token that the tokenizer puts in front of every text; empty if there is none.
        stop_ids: at which generation ends by `generation_config.json`.
    """

    text: TextModel
    tokens: dict[str, int]
    added: tuple[str, ...]
    adds: str
    stop_ids: frozenset[int]


def read_files(folder: Path) -> TokenizerFiles:
    """Read the files; `vocab.json` with `merges.txt` comes before `tokenizer.json`, both before `tokenizer.model`.

    Raises:
        CheckpointError: a file is missing, unreadable or of an unknown kind, or two contradict each other.
        BackendError: the files are sentencepiece's, which is not installed.
    """
    whole_path, pieces_path = folder / "tokenizer.json", folder / "tokenizer.model"
    if pieces_path.exists() and not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
        return _read_pieces(folder, pieces_path)
    whole = _read_json(whole_path) if whole_path.exists() else None
    if whole_path.exists() and not isinstance(whole, dict):
        raise CheckpointError(f"{whole_path} must hold a JSON object, got {type(whole).__name__}; {FIX}")
    vocab_path, vocab, merges, words = _text_model(folder, whole)
    added = _added_tokens(folder, whole)
    return TokenizerFiles(
        text=BytePairs(build_bpe(vocab, merges, words)),
        tokens=_unite([(vocab_path, vocab), *added]),
        added=tuple(name for _, ids in added for name in ids),
        adds=_added_in_front(whole_path, whole or {}),
        stop_ids=_stop_ids(folder / "generation_config.json"),
    )


def _read_pieces(folder: Path, path: Path) -> TokenizerFiles:
    config_path = folder / "tokenizer_config.json"
    with _reading(config_path):
        config = _read_json(config_path) if config_path.exists() else {}
        text = SentencePieces(path, is_legacy=bool(config.get("legacy", True)))
        adds = config.get("bos_token", "<s>") if config.get("add_bos_token", True) else ""
    added = _added_tokens(folder, None)
    return TokenizerFiles(
        text=text,
        tokens=_unite([(path, text.tokens), *added]),
        added=(*text.special, *(name for _, ids in added for name in ids)),
        adds=adds if isinstance(adds, str) else str(adds["content"]),
        stop_ids=_stop_ids(folder / "generation_config.json"),
    )


def _added_in_front(path: Path, whole: dict[str, Any]) -> str:
    """Return the token that the post-processor puts in front of a text."""
    with _reading(path):
        processor = whole.get("post_processor") or {}
        for each in processor.get("processors", [processor]):
            if each.get("type") == "TemplateProcessing" and "SpecialToken" in each["single"][0]:
                return str(each["single"][0]["SpecialToken"]["id"])
    return ""


def _stop_ids(path: Path) -> frozenset[int]:
    if not path.exists():
        return frozenset()
    with _reading(path):
        said = _read_json(path).get("eos_token_id")
        listed = said if isinstance(said, list) else [] if said is None else [said]
        return frozenset(_checked_ids(path, {f"eos_token_id {idx}": idx for idx in listed}).values())


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


def _text_model(folder: Path, whole: Any) -> tuple[Path, dict[str, int], list[tuple[str, str]], WordKind]:
    """Return the file that holds the text tokens, these, their merges, and how words are split."""
    vocab_path, merges_path, whole_path = (folder / name for name in ("vocab.json", "merges.txt", "tokenizer.json"))
    words = QWEN2 if whole is None else _word_kind(whole_path, whole)
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
    return vocab_path, vocab, _checked_merges(merges_path, merges, vocab), words


def _word_kind(path: Path, whole: Any) -> WordKind:
    """Refuse a `tokenizer.json` of another class, whose text this project would split in the wrong places."""
    with _reading(path):
        kind = whole["model"].get("type", "BPE")
        words = json.dumps(whole["pre_tokenizer"])
    for known in WORD_KINDS:
        if kind == "BPE" and json.dumps(known.pattern) in words:
            return known
    raise CheckpointError(f"{path} must be BPE of words as Qwen2 or Llama-3 splits them, got {kind} and {words}; {FIX}")


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
