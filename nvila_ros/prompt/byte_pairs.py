"""Byte-level BPE, whose words are split as Qwen2's or as Llama-3's tokenizer splits them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

# Split text into words before BPE; they differ in how many digits are one word.
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_WORDS = QWEN2_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


@dataclass(frozen=True, slots=True)
class WordKind:
    """How text becomes words. Source: the tokenizer configurations published with Qwen2 and Llama-3."""

    pattern: str
    has_nfc: bool


QWEN2, LLAMA3 = WordKind(QWEN2_WORDS, has_nfc=True), WordKind(LLAMA3_WORDS, has_nfc=False)
WORD_KINDS = (QWEN2, LLAMA3)


def build_bpe(vocab: dict[str, int], merges: list[tuple[str, str]], words: WordKind = QWEN2) -> Tokenizer:
    """Build the tokenizer without any special tokens.

    Every word is merged from its bytes, also where a file says `ignore_merges`: the tokenizer that VILA 1.5 was trained
    with does not know that key.
    """
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    if words.has_nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words.pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


class BytePairs:
    """`TextModel` of byte-level BPE."""

    front = ""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str, is_start: bool) -> list[int]:
        """Return the ids of a text, which do not depend on where it stands."""
        return self._tokenizer.encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        return self._tokenizer.decode(list(ids))

    def token_bytes(self) -> dict[int, bytes]:
        """Return the bytes of each token."""
        byte_by_char = {char: byte for byte, char in enumerate(_byte_chars())}
        return {
            idx: bytes(byte_by_char[char] for char in name)
            for name, idx in self._tokenizer.get_vocab().items()
            if byte_by_char.keys() >= set(name)
        }


def _byte_chars() -> list[str]:
    """Return the character that stands for each byte in a byte-level vocabulary.

    Printable bytes of Latin-1 stand for themselves, the others for the characters from 256 on. Source: GPT-2's encoder.
    """
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in own else next(others)) for byte in range(0x100)]
