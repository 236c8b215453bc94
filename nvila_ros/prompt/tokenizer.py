"""The tokenizer of a checkpoint, built from the files it ships.

Text from users never becomes a special token: only the frame of the chat, which this project writes itself, does. Media
tokens that no file names get the ids that VILA gives them at load, behind the rows of the saved embedding table, so ids
come from the tokenizer and are never assumed. VILA 1.5 has no such tokens.

Source: NVLabs/VILA `language_model/builder.py` and `tokenizer_image_token`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from nvila_ros.errors import CheckpointError
from nvila_ros.prompt.template import TEMPLATES, Template
from nvila_ros.prompt.text_stream import TextStream
from nvila_ros.prompt.time_tokens import places_in_clip, read_time_tokens, time_of_place
from nvila_ros.prompt.tokenizer_files import FIX, TextModel, TokenizerFiles, read_files
from nvila_ros.types import NS_PER_S

SENTINEL = "<vila/sentinel>"
MEDIA_NAMES = ("<image>", "<vila/video>")
NO_MEDIA_TOKEN = -200
"""Upstream's index of an image where the vocabulary has no token for one."""


class ChatTokenizer:
    """Encodes plain text and knows the ids of the chat's frame and of media.

    Attributes:
        template: of the chat.
        turn_end: id that ends an answer in front of a further turn.
        answer_end: id that ends the last answer of a conversation.
        stop_ids: at each of which an answer ends.
        first_ids: stand before a whole prompt.
        num_cut: ids that each piece behind a medium loses at its beginning, as upstream trained some checkpoints.
        sentinel_id: id of VILA's `<vila/sentinel>`.
        image_id: id of `<image>`; like the other two often behind the embedding table, so never an input, or
            `NO_MEDIA_TOKEN`.
        video_id: id of `<vila/video>`.
        time_ids: ids of the time tokens, in order; empty if there are none.
        num_tokens: distinct tokens, media included: upstream's `len(tokenizer)`.
    """

    def __init__(
        self, text: TextModel, tokens: dict[str, int], added: Collection[str], template: Template, adds_bos: bool
    ) -> None:
        self._text, self.template = text, template
        media_names = (SENTINEL, *MEDIA_NAMES) if template.has_media_tokens else ()
        self._special = {name: tokens[name] for name in (*template.tokens, *media_names, *added)}
        self._special_ids = set(self._special.values())
        self.turn_end, self.answer_end = tokens[template.turn_end], tokens[template.answer_end]
        self.stop_ids = frozenset(tokens[name] for name in template.stops)
        # Upstream drops the first id of every piece but one where the first piece begins with that of a text's begin,
        # and does not ask whether the tokenizer put it there or the template.
        bos = template.tokens[0]
        self.first_ids = (tokens[bos],) if adds_bos else ()
        self.num_cut = int(not adds_bos and template.begins_with(bos) and not template.has_media_tokens)
        media_ids = [tokens[name] for name in media_names]
        self.sentinel_id, self.image_id, self.video_id = media_ids or [NO_MEDIA_TOKEN] * 3
        self.time_ids: tuple[int, ...] = ()
        self.num_tokens = len(tokens)
        self._answer_ids = np.array(sorted(set(tokens.values()) - set(media_ids)), dtype=np.int64)

    @classmethod
    def from_folder(cls, folder: str | Path) -> ChatTokenizer:
        """Read the tokenizer files of a checkpoint: its `llm` folder, or its root in the flat layout.

        Raises:
            CheckpointError: a file is missing, unreadable or of an unknown kind, two contradict each other, or the
                tokens of no known template are there.
        """
        folder = Path(folder)
        files = read_files(folder)
        template = _find_template(folder, files)
        tokens = _with_media(folder, files.tokens) if template.has_media_tokens else files.tokens
        adds_bos = files.adds == template.tokens[0] and not template.has_media_tokens
        tokenizer = cls(files.text, tokens, files.added, template, adds_bos)
        if not template.has_media_tokens:  # of NVILA upstream infers the one stop token from the template
            tokenizer.stop_ids |= files.stop_ids
        tokenizer.time_ids = read_time_tokens(folder, tokens)
        tokenizer._special_ids.update(tokenizer.time_ids)
        return tokenizer

    @property
    def named_ids(self) -> dict[str, int]:
        """The ids of the chat's frame and of media, by name."""
        media = {SENTINEL: self.sentinel_id, **dict(zip(MEDIA_NAMES, (self.image_id, self.video_id), strict=True))}
        frame = {name: self._special[name] for name in self.template.tokens}
        return frame | (media if self.template.has_media_tokens else {})

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text; special tokens' names in it are ordinary characters."""
        return self._text.encode(text, is_start=True)

    def encode_marked(self, text: str) -> list[int]:
        """Return the ids of a text from the checkpoint itself: special tokens in it are special."""
        return self.encode_piece([(text, True)])

    def encode_piece(self, texts: Sequence[tuple[str, bool]], *, is_start: bool = True) -> list[int]:
        """Return the ids of texts that follow one another; where no special token parts them, they are one text.

        Args:
            texts: each with whether it is the template's, in which special tokens are special, or plain.
            is_start: false behind a special token.
        """
        ids: list[int] = []
        run = ""
        for segment in (each for text, is_marked in texts for each in (self._split(text) if is_marked else [text])):
            if isinstance(segment, str):
                run += segment
                continue
            ids += [*self._text.encode(run, is_start and not ids), segment]
            run = ""
        return ids + self._text.encode(run, is_start and not ids)

    def text_stream(self, stop: Sequence[str] = (), stamps_ns: Sequence[int] = ()) -> TextStream:
        """Return what makes an answer's ids a text as they come, up to a text at which it ends.

        Args:
            stop: texts at which it ends.
            stamps_ns: of the clip that it is about, by which time tokens become seconds.
        """
        return TextStream(lambda ids: self.decode(ids, stamps_ns), stop, self._text.front)

    def decode(self, ids: list[int], stamps_ns: Sequence[int] = ()) -> str:
        """Return the text of ids; added tokens and media are left out, broken UTF-8 becomes U+FFFD.

        Time tokens become seconds since the first of a clip's stamps, as in <3.25>.
        """
        if not stamps_ns or not self.time_ids:
            return self._text.decode([i for i in ids if i not in self._special_ids])
        pieces = [list(run) for _, run in itertools.groupby(ids, key=self.time_ids.__contains__)]
        return "".join(
            "".join(self._tell_time(i, stamps_ns) for i in run) if run[0] in self.time_ids else self.decode(run)
            for run in pieces
        )

    def _tell_time(self, idx: int, stamps_ns: Sequence[int]) -> str:
        place = places_in_clip(len(self.time_ids))[self.time_ids.index(idx)]
        return f"<{(time_of_place(float(place), stamps_ns) - stamps_ns[0]) / NS_PER_S:.2f}>"

    def never_sampled(self, vocab_size: int) -> np.ndarray:
        """Return which of `vocab_size` logits are never sampled, (K,) int64, sorted; often none.

        They are the media tokens, whose rows were never trained, and rows that pad the table: no token owns them.
        """
        return np.setdiff1d(np.arange(vocab_size, dtype=np.int64), self._answer_ids)

    def token_bytes(self, vocab_size: int) -> list[bytes]:
        """Return the bytes of each of `vocab_size` ids; empty for added tokens, media and rows without a token."""
        written = [b""] * vocab_size
        for idx, value in self._text.token_bytes().items():
            if idx < vocab_size and idx not in self._special_ids:
                written[idx] = value
        return written

    def _split(self, text: str) -> list[str | int]:
        """Return a text with the special tokens in it as ids."""
        names = "|".join(re.escape(name) for name in sorted(self._special, key=len, reverse=True))
        return [self._special.get(piece, piece) for piece in re.split(f"({names})", text) if piece]


def _find_template(folder: Path, files: TokenizerFiles) -> Template:
    """Return the template whose tokens are there."""
    for template in TEMPLATES:
        if files.tokens.keys() >= set(template.tokens):
            return template
    missing = {t.name: [name for name in t.tokens if name not in files.tokens] for t in TEMPLATES}
    raise CheckpointError(
        f"the tokenizer in {folder} must hold the special tokens of a known template, but of each some are missing: "
        f"{missing}; {FIX}"
    )


def _with_media(folder: Path, tokens: dict[str, int]) -> dict[str, int]:
    """Return the tokens with sentinel and media; new ones get VILA's ids, each the number of tokens before it."""
    tokens = dict(tokens)
    for name in (SENTINEL, *MEDIA_NAMES):
        tokens.setdefault(name, len(tokens))
    if len(set(tokens.values())) < len(tokens):
        gap = min(set(range(len(tokens))) - set(tokens.values()))
        raise CheckpointError(f"the tokenizer in {folder} must number its tokens without gaps, {gap} is one; {FIX}")
    return tokens
