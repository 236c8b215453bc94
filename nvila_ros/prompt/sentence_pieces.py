"""sentencepiece's tokenizer of LLaMA-2's kind, in which VILA 1.5's 3B and 13B read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nvila_ros.errors import BackendError, CheckpointError

BLANK = "\u2581"  # how pieces spell a blank
_BREAK = "\n"  # a byte of its own, which joins no piece


class SentencePieces:
    """`TextModel` of a sentencepiece model.

    Args:
        path: of `tokenizer.model`.
        is_legacy: text behind a special token begins with a blank as well, as transformers once had it.

    Attributes:
        front: what stands before every text, and no user sees.
        tokens: ids by piece.
        special: pieces that are no text.

    Raises:
        CheckpointError: the file is no such model.
        BackendError: sentencepiece is not installed.
    """

    front = " "

    def __init__(self, path: Path, is_legacy: bool) -> None:
        try:
            import sentencepiece
        except ModuleNotFoundError as error:
            raise BackendError(f"{path} needs 'sentencepiece'; install it beside nvila_ros") from error
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{path} is no sentencepiece model ({error}); download it again") from error
        model, ids = self._model, range(self._model.get_piece_size())
        self._is_legacy = is_legacy
        self.tokens = {model.id_to_piece(idx): idx for idx in ids}
        self.special = tuple(model.id_to_piece(idx) for idx in ids if model.is_control(idx) or model.is_unknown(idx))
        self._bytes = {idx: self._spell(idx) for idx in ids}
        self._num_break = len(model.encode(_BREAK))
        if len(self.tokens) < len(ids) or not model.is_byte(model.encode(_BREAK)[-1]):
            raise CheckpointError(f"{path} must hold each piece once, and bytes for what has none; download it again")

    def encode(self, text: str, is_start: bool) -> list[int]:
        """Return the ids of a text; one at a start has a blank in front."""
        if not text or is_start or self._is_legacy:
            return list(self._model.encode(text))
        return list(self._model.encode(_BREAK + text)[self._num_break :])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, with the blank in front of it."""
        return b"".join(self._bytes[idx] for idx in ids).decode(errors="replace")

    def token_bytes(self) -> dict[int, bytes]:
        """Return the bytes of each piece."""
        return dict(self._bytes)

    def _spell(self, idx: int) -> bytes:
        piece = str(self._model.id_to_piece(idx))
        if self._model.is_byte(idx):
            return bytes([int(piece[1:-1], 16)])
        return b"" if piece in self.special else piece.replace(BLANK, " ").encode()
