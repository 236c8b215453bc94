"""The whole flow on one page: frames and a question in, an answer with its times and counts out.

    frames -> view (tiles) -> features -> visual tokens -> prompt -> prefill -> decode

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
from nvila_ros.models.artefact import Artefact, is_artefact, open_artefact
from nvila_ros.models.checkpoint import Checkpoint, open_checkpoint
from nvila_ros.models.spec import PUBLISHED, Overrides
from nvila_ros.paths import build_folder, share_path
from nvila_ros.preprocess.tiles import normalize_tiles
from nvila_ros.preprocess.views import View, clip_length, view_clip, view_image, view_images
from nvila_ros.prompt.chat import PLACEHOLDER, build_prompt
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.contract import Engine
from nvila_ros.types import Answer, Counts, FinishReason, Frame, OnPiece, Query, ShouldStop
from nvila_ros.visual.encode import Seen, arrange, merge_features

MODULES = {
    "onnxruntime": "nvila_ros.runtime.onnxruntime_engine",
    "openvino": "nvila_ros.runtime.openvino_engine",
    "torch": "nvila_ros.runtime.torch_engine",
}
"""Where the engine of each backend lives; imported only when it is asked for."""
BACKENDS = tuple(MODULES)
SIMULATOR = "nvila_ros.quantization.simulate"  # torch with quantized weights


class Perceiver:
    """Answers queries about frames."""

    def __init__(
        self, engine: Engine, tokenizer: ChatTokenizer, *, backend: str, now_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self.model, self.backend, self.precision = engine.spec.name, backend, engine.precision
        self._engine, self._tokenizer, self._now_ns = engine, tokenizer, now_ns
        self._never_sampled = tokenizer.never_sampled(engine.spec.decoder.vocab_size)
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
        if not query.question.strip():
            raise QueryError("a question must hold text, got none")
        shown = self._choose_frames(frames)
        choices = [[*self._tokenizer.encode(choice), self._tokenizer.im_end] for choice in query.choices]
        num_more = max([query.max_tokens, *map(len, choices)])
        run = Ledger(query, self._now_ns, shown, on_piece, should_stop)
        run.counts = Counts(num_frames_dropped=len(frames) - len(shown))
        try:
            seen = self._see(shown, run)
            embeds_LD = self._prompt(query, seen, num_more, run)
            logits_V = self._prefill(embeds_LD, num_more, run)
            reason = self._choose(logits_V, choices, run) if choices else self._tell(logits_V, run)
        except StopAnswer as stopped:
            reason = stopped.reason
        return replace(run.close(reason), model=self.model, backend=self.backend, precision=self.precision)

    def warm_up(self) -> None:
        """Run the model once, so that the first question finds everything allocated."""
        pixels = np.zeros((8, 8, 3), np.uint8)
        self.answer(Query(query_id="warm-up", question="?", max_tokens=1), [Frame(image=pixels, stamp_ns=0)])

    def _choose_frames(self, frames: Sequence[Frame]) -> Sequence[Frame]:
        """Return the frames that the model is shown: of a clip, the newest that make whole groups."""
        return frames[-self._clip_length(frames) :]  # 0 leaves all

    def _clip_length(self, frames: Sequence[Frame]) -> int:
        return clip_length(self._engine.spec, len(frames), len({frame.camera for frame in frames}))

    def _view(self, frames: Sequence[Frame]) -> View:
        spec, images = self._engine.spec, [frame.image for frame in frames]
        if len(images) == 1:
            return view_image(spec, images[0])
        return view_clip(spec, images) if self._clip_length(frames) else view_images(spec, images)

    def _see(self, frames: Sequence[Frame], run: Ledger) -> Seen:
        """Return the visual tokens of all frames and how the prompt shows them."""
        engine, spec = self._engine, self._engine.spec
        if not frames:
            return Seen(np.empty((0, spec.decoder.width), np.float32), ())
        run.check()
        view = self._view(frames)
        tile_NCHW = normalize_tiles(view.tiles, spec.pixel_dtype)
        run.mark("preprocess_s")
        # One by one: the tower dwarfs the calls, and a cancel waits for one tile only.
        feat_NPE = np.concatenate([engine.vision(tile) for tile in run.steps(tile_NCHW)])
        merged_BPE = merge_features(spec, view, feat_NPE)
        visual_BGD = np.concatenate([engine.project(block) for block in run.steps(merged_BPE)])
        seen = arrange(spec, view, visual_BGD)
        run.mark("vision_s")
        return seen

    def _prompt(self, query: Query, seen: Seen, num_more: int, run: Ledger) -> np.ndarray:
        """Return the embeddings of the whole prompt, (L, D)."""
        ids_L = build_prompt(self._tokenizer, [*seen.parts, query.question])
        num_positions = self._engine.spec.decoder.max_positions
        if len(ids_L) + num_more > num_positions:
            raise QueryError(
                f"prompt and answer must fit {num_positions} positions, got {len(ids_L)} and {num_more}; "
                "ask about fewer frames, ask shorter or lower max_tokens"
            )
        run.counts = replace(run.counts, num_visual_tokens=len(seen.visual_GD), num_prompt_tokens=len(ids_L))
        return embed_prompt(self._engine, ids_L, seen.visual_GD)

    def _prefill(self, embeds_LD: np.ndarray, num_more: int, run: Ledger) -> np.ndarray:
        needed = len(embeds_LD) + num_more
        if self._cache.capacity < needed:
            self._cache = self._engine.new_cache(needed)
        self._cache.truncate(0)
        logits_V = prefill(self._engine, embeds_LD, self._cache, run.check)
        run.mark("prefill_s")
        return logits_V

    def _tell(self, logits_V: np.ndarray, run: Ledger) -> FinishReason:
        """Decode until the stop token or the limit, telling each piece."""
        run.stream = TextStream(self._tokenizer.decode)
        tokens = decode_greedy(
            self._engine, logits_V, self._cache, stop_id=self._tokenizer.im_end, never=self._never_sampled
        )
        for token in tokens:
            run.count_token()
            run.tell(run.stream.push(token))
            if run.counts.num_answer_tokens == run.query.max_tokens:
                return FinishReason.LENGTH
            run.check()
        return FinishReason.STOP

    def _choose(self, logits_V: np.ndarray, choices: Sequence[Sequence[int]], run: Ledger) -> FinishReason:
        """Answer with the likeliest of the query's choices, given as token ids."""
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


def load_perceiver(
    model: str, *, backend: str = "onnxruntime", threads: int = 0, overrides: Overrides = PUBLISHED
) -> Perceiver:
    """Load a checkpoint folder, or an embedded checkpoint by its name, for a backend.

    Raises:
        CheckpointError: there is no such checkpoint, or it is not whole.
        BackendError: the backend is unknown or not installed.
    """
    source = open_model(find_checkpoint(model))
    source = replace(source, spec=overrides.apply(source.spec))
    tokenizer = ChatTokenizer.from_folder(source.tokenizer_folder)
    return Perceiver(load_engine(source, backend, threads), tokenizer, backend=backend)


def open_model(path: Path) -> Checkpoint | Artefact:
    """Open a checkpoint, or what was built of one.

    Raises:
        CheckpointError: it is neither, or not whole.
    """
    return open_artefact(path) if is_artefact(path) else open_checkpoint(path)


def load_engine(source: Checkpoint | Artefact, backend: str, threads: int = 0) -> Engine:
    """Load an opened checkpoint or build for a backend.

    Raises:
        CheckpointError: it is not whole.
        BackendError: the backend is unknown or not installed.
    """
    if backend not in BACKENDS:
        raise BackendError(f"unknown backend {backend!r}; known are {list(BACKENDS)}")
    try:
        is_simulated = backend == "torch" and isinstance(source, Artefact)
        module = importlib.import_module(SIMULATOR if is_simulated else MODULES[backend])
    except ModuleNotFoundError as error:
        raise BackendError(f"backend {backend} needs {error.name!r}; install it beside nvila_ros") from error
    return module.load(source, threads)


def find_checkpoint(model: str) -> Path:
    """Return the folder of a checkpoint or build given as a path, as an embedded one's name or as a recipe's.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    embedded, built = share_path("checkpoints"), build_folder()
    if (embedded / model / "config.json").is_file():
        return embedded / model
    if is_artefact(built / model):
        return built / model
    names = sorted(config.parent.name for config in embedded.glob("*/config.json"))
    builds = sorted(folder.name for folder in built.glob("*") if is_artefact(folder))
    raise CheckpointError(
        f"no checkpoint at {model!r}; give a folder, one of the embedded {names}, or one of the builds {builds}"
    )
