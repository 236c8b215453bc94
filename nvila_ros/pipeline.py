"""The whole flow on one page: frames and a question in, an answer with its times and counts out.

    frames -> tiles -> features -> visual tokens -> prompt -> prefill -> decode

A `Perceiver` owns one engine and belongs to one thread. It reads no clock but the steady one that it is given.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from nvila_ros.errors import BackendError, CheckpointError, QueryError, ShapeError
from nvila_ros.generation.decode import decode_greedy, prefill, score_choices
from nvila_ros.generation.pieces import TextStream
from nvila_ros.ledger import Ledger, StopAnswer
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.paths import share_path
from nvila_ros.preprocess.tiles import frame_tile, normalize_tiles
from nvila_ros.preprocess.tiling import cut_tiles
from nvila_ros.prompt.chat import PLACEHOLDER, Media, build_prompt
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.contract import Engine
from nvila_ros.types import Answer, FinishReason, Frame, OnPiece, Query, ShouldStop

BACKENDS = ("onnxruntime", "torch")


class Perceiver:
    """Answers queries about frames."""

    def __init__(
        self, engine: Engine, tokenizer: ChatTokenizer, *, backend: str, now_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self.model, self.backend, self.precision = engine.spec.name, backend, engine.precision
        self._engine, self._tokenizer, self._now_ns = engine, tokenizer, now_ns
        self._cache = engine.new_cache(0)

    def answer(
        self,
        query: Query,
        frames: Sequence[Frame],
        *,
        on_piece: OnPiece | None = None,
        should_stop: ShouldStop | None = None,
    ) -> Answer:
        """Answer one query about frames in capture order; without frames, about text alone.

        Args:
            query: its window was already resolved into `frames`.
            frames: what the answer is about.
            on_piece: takes each piece of text as it comes; the last one is final.
            should_stop: asked before each step and token; the reason to end with, or None to go on.

        Returns:
            The answer; stopped amid its work, it carries the text so far and the reason.

        Raises:
            QueryError: the question is empty, or prompt and answer exceed the model's positions.
        """
        run = Ledger(query, self._now_ns, frames, on_piece, should_stop)
        try:
            visual_GD, media = self._see(frames, run)
            embeds_LD = self._prompt(query, visual_GD, media, run)
            logits_V = self._prefill(embeds_LD, query, run)
            reason = self._choose(logits_V, run) if query.choices else self._tell(logits_V, run)
        except StopAnswer as stopped:
            reason = stopped.reason
        return replace(run.close(reason), model=self.model, backend=self.backend, precision=self.precision)

    def warm_up(self) -> None:
        """Run the model once, so that the first question finds everything allocated."""
        pixels = np.zeros((8, 8, 3), np.uint8)
        self.answer(Query(query_id="warm-up", question="?", max_tokens=1), [Frame(image=pixels, stamp_ns=0)])

    def _see(self, frames: Sequence[Frame], run: Ledger) -> tuple[np.ndarray, Media]:
        """Return the visual tokens of all frames, (G, D) without newlines, and how the prompt shows them."""
        spec = self._engine.spec
        if not frames:
            return np.empty((0, spec.decoder.width), np.float32), Media()
        run.check()
        is_tiled = len(frames) == 1 and spec.image_mode == "dynamic"
        tile_px = spec.vision.image_px
        tiles = cut_tiles(frames[0].image, tile_px) if is_tiled else [frame_tile(f.image, tile_px) for f in frames]
        tile_NCHW = normalize_tiles(tiles)
        run.mark("preprocess_s")
        visual = []
        for i in range(len(tiles)):  # tile by tile: the tower dwarfs the calls, and a cancel waits for one tile only
            run.check()
            visual.append(self._engine.project(self._engine.vision(tile_NCHW[i : i + 1]))[0])
        run.mark("vision_s")
        media = Media(tuple(len(tokens) for tokens in visual), has_text_newline=is_tiled)
        return np.concatenate(visual), media

    def _prompt(self, query: Query, visual_GD: np.ndarray, media: Media, run: Ledger) -> np.ndarray:
        """Return the embeddings of the whole prompt, (L, D)."""
        ids_L = build_prompt(self._tokenizer, query.question, media)
        num_positions = self._engine.spec.decoder.max_positions
        if len(ids_L) + query.max_tokens > num_positions:
            raise QueryError(
                f"prompt and answer must fit {num_positions} positions, got {len(ids_L)} and {query.max_tokens}; "
                "ask about fewer frames, ask shorter or lower max_tokens"
            )
        run.counts = replace(run.counts, num_visual_tokens=len(visual_GD), num_prompt_tokens=len(ids_L))
        return embed_prompt(self._engine, ids_L, visual_GD)

    def _prefill(self, embeds_LD: np.ndarray, query: Query, run: Ledger) -> np.ndarray:
        needed = len(embeds_LD) + max(query.max_tokens, max((len(c) for c in query.choices), default=0) + 1)
        if self._cache.capacity < needed:
            self._cache = self._engine.new_cache(needed)
        self._cache.truncate(0)
        logits_V = prefill(self._engine, embeds_LD, self._cache, run.check)
        run.mark("prefill_s")
        return logits_V

    def _tell(self, logits_V: np.ndarray, run: Ledger) -> FinishReason:
        """Decode until the stop token or the limit, telling each piece."""
        run.stream = TextStream(self._tokenizer.decode)
        for token in decode_greedy(self._engine, logits_V, self._cache, self._tokenizer.im_end):
            run.count_token()
            run.tell(run.stream.push(token))
            if run.counts.num_answer_tokens == run.query.max_tokens:
                return FinishReason.LENGTH
            run.check()
        return FinishReason.STOP

    def _choose(self, logits_V: np.ndarray, run: Ledger) -> FinishReason:
        """Answer with the likeliest of the query's choices."""
        choices = [[*self._tokenizer.encode(choice), self._tokenizer.im_end] for choice in run.query.choices]
        probabilities = score_choices(self._engine, logits_V, self._cache, choices, run.check)
        best = int(probabilities.argmax())
        run.probabilities = tuple(probabilities.tolist())
        run.counts = replace(run.counts, num_answer_tokens=len(choices[best]) - 1)
        run.tell(run.query.choices[best])
        return FinishReason.STOP


def embed_prompt(engine: Engine, ids_L: np.ndarray, visual_GD: np.ndarray) -> np.ndarray:
    """Return the embeddings of a prompt with visual tokens in place of its placeholders, (L, D).

    Raises:
        ShapeError: the counts differ; going on would answer about the wrong pixels.
    """
    is_placeholder_L = ids_L == PLACEHOLDER
    if is_placeholder_L.sum() != len(visual_GD):
        raise ShapeError(
            f"one placeholder per visual token, got {is_placeholder_L.sum()} placeholders and {len(visual_GD)} tokens"
        )
    embeds_LD = engine.embed(np.where(is_placeholder_L, 0, ids_L)).copy()
    embeds_LD[is_placeholder_L] = visual_GD
    return embeds_LD


def load_perceiver(model: str, *, backend: str = "onnxruntime", threads: int = 0) -> Perceiver:
    """Load a checkpoint folder, or an embedded checkpoint by its name, for a backend.

    Raises:
        CheckpointError: there is no such checkpoint, or it is not whole.
        BackendError: the backend is unknown or not installed.
    """
    if backend not in BACKENDS:
        raise BackendError(f"unknown backend {backend!r}; known are {list(BACKENDS)}")
    path = find_checkpoint(model)
    try:
        module = importlib.import_module(f"nvila_ros.runtime.{backend}_engine")
    except ModuleNotFoundError as error:
        raise BackendError(f"backend {backend} needs {error.name!r}; install it beside nvila_ros") from error
    checkpoint = open_checkpoint(path)
    tokenizer = ChatTokenizer.from_folder(path / "llm")
    return Perceiver(module.load(checkpoint, threads), tokenizer, backend=backend)


def find_checkpoint(model: str) -> Path:
    """Return the folder of a checkpoint given as a path or as an embedded one's name.

    Raises:
        CheckpointError: there is neither.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    embedded = share_path("checkpoints")
    if (embedded / model / "config.json").is_file():
        return embedded / model
    names = sorted(config.parent.name for config in embedded.glob("*/config.json"))
    raise CheckpointError(f"no checkpoint at {model!r}; give a folder or one of the embedded {names}")
