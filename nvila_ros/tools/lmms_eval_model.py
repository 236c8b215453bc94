"""A model class for lmms-eval, so that its benchmarks run on any checkpoint, build and backend of ours.

    python -m lmms_eval --model nvila_ros --model_args checkpoint=nvila-tiny,backend=cpu --tasks chartqa

Media and text go through the flow that answers the node's queries, so what is measured is what a robot gets. Decoding
is greedy; a task that samples is refused.

Source: lmms-eval 0.7, `api/model.py` and `api/task.py`, of which this is a model of the simple kind.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from PIL import Image
from rich.console import Console
from rich.progress import track

from nvila_ros.errors import ConfigError, FrameError, QueryError
from nvila_ros.models.spec import PUBLISHED, Overrides
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.loading import AUTO, choose_backend, find_checkpoint, load_engine, open_model
from nvila_ros.serving.pipeline import VisionLanguageModel
from nvila_ros.tools.likelihood import LikelihoodScorer
from nvila_ros.types import Answer, FinishReason, Frame, Piece, Query
from nvila_ros.video.media import IMAGE_SUFFIXES, open_media, read_clip

DEFAULT_MAX_TOKENS = 1024
"""Of an answer where the task gives no limit, as in lmms-eval's own models."""
_READ = frozenset({"max_new_tokens", "until", "do_sample", "temperature", "num_beams"})
_WITHOUT_EFFECT = frozenset({"top_p", "top_k"})  # of sampling, which is refused
_log = logging.getLogger(__name__)


class ContinuationLoss(tuple[float, bool], GenerationResult):
    """The loss of a continuation, and whether it is greedy.

    The evaluator of 0.7.3 hands on what a `GenerationResult` holds, and makes text of any other pair.
    """

    def __init__(self, pair: tuple[float, bool]) -> None:
        GenerationResult.__init__(self, text=pair)


class NvilaRos(lmms):
    """An NVILA checkpoint or build; the arguments are those of `--model_args`.

    Args:
        checkpoint: folder, or name of an embedded checkpoint or of a build.
        backend: `auto` is what the model is meant for.
        threads: of a CPU; 0 takes every core.
        num_frames: the most of a video; 0 is the checkpoint's.
        max_tiles: of a single image; 0 is the checkpoint's.
        video_mode: as `--video-mode` of `nvila ask`.
        batch_size: must be 1; questions about one medium share its work whatever is set here.
        max_batch_size: as `batch_size`.
        device: must be left out; the backend decides.

    Raises:
        NvilaError: the checkpoint, the backend or an argument is not acceptable.
    """

    def __init__(
        self,
        checkpoint: str,
        backend: str = AUTO,
        precision: str = AUTO,
        threads: int = 0,
        num_frames: int = 0,
        max_tiles: int = 0,
        video_mode: str = PUBLISHED.video_mode,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        if device is not None or int(batch_size) != 1 or (max_batch_size or 1) != 1:
            got = f"got batch_size={batch_size}, max_batch_size={max_batch_size}, device={device}"
            raise ConfigError(f"nvila_ros asks one by one, on what its backend runs on: leave these alone, {got}")
        source = open_model(find_checkpoint(str(checkpoint)))
        backend = choose_backend(source, backend)
        overrides = Overrides(video_mode=video_mode, max_tiles=int(max_tiles), pixel_dtype=PUBLISHED.pixel_dtype)
        source = replace(source, spec=overrides.apply(source.spec))
        engine, tokenizer = (
            load_engine(source, backend, int(threads), precision),
            ChatTokenizer.from_folder(source.tokenizer_folder),
        )
        self._vlm = VisionLanguageModel(engine, tokenizer, backend=backend)
        self._scorer = LikelihoodScorer(engine, tokenizer)
        self._num_frames = int(num_frames) or source.spec.num_video_frames
        self._num_positions = source.spec.decoder.max_positions
        self._warned: set[str] = set()

    @property
    def device(self) -> torch.device:
        """Where lmms-eval gathers the counts of its processes."""
        return torch.device("cpu")

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Return the answers to requests (context, generation_kwargs, doc_to_visual, doc_id, task, split).

        Raises:
            NvilaError: a task wants to sample, a medium cannot be read or shown, or a prompt is too long.
        """
        return [self._generate(*request.args) for request in self._with_progress(requests)]

    def loglikelihood(self, requests: list[Instance]) -> list[ContinuationLoss]:
        """Return of requests (context, continuation, doc_to_visual, doc_id, task, split) the loss and if it is greedy.

        The loss is the mean over the continuation's tokens and the stop token of the negative log probability: although
        the method is called otherwise, lmms-eval takes the least as the best choice, as its own models return it. The
        blank that it puts before a choice is left out, since an answer begins on a line of its own.

        Raises:
            NvilaError: a medium cannot be read or shown, or a prompt is too long.
        """
        losses: list[ContinuationLoss] = []
        for _, alike in itertools.groupby(self._with_progress(requests), key=_same_question):
            group = [request.args for request in alike]
            context, _, *place = group[0]
            frames = self._frames(*place) if place else []
            texts = [self._continuation(*args) for args in group]
            for each in self._scorer.score(frames, _plain(context), texts):
                losses.append(ContinuationLoss((-float(np.mean(each.log_probs)), each.is_greedy)))
        return losses

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refuse tasks whose next question depends on the answer before.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "nvila_ros answers single questions; leave out tasks of type generate_until_multi_round"
        )

    def _generate(
        self, context: str, settings: Mapping[str, Any], doc_to_visual: Callable[..., Any], *place: Any
    ) -> GenerationResult:
        until = _stops(settings)
        self._check(settings)
        query = Query(
            query_id=f"{place[1]}-{place[0]}",
            question=_plain(context),
            max_tokens=int(settings.get("max_new_tokens") or DEFAULT_MAX_TOKENS),
        )
        answer = self._answer(query, self._frames(doc_to_visual, *place), until)
        text = answer.text
        for stop in until:
            text = text.partition(stop)[0]
        self.cache_hook.add_partial("generate_until", (context, settings), text)
        counts = answer.counts
        return GenerationResult(text, TokenCounts(counts.num_prompt_tokens, counts.num_answer_tokens))

    def _answer(self, query: Query, frames: Sequence[Frame], until: Sequence[str]) -> Answer:
        """Ask, with as many tokens for the answer as the prompt leaves where it does not leave those wanted."""
        pieces: list[str] = []

        def on_piece(piece: Piece) -> None:
            pieces.append(piece.text)

        def should_stop() -> FinishReason | None:
            return FinishReason.STOP if any(stop in "".join(pieces) for stop in until) else None

        try:
            return self._vlm.answer(query, frames, on_piece=on_piece, should_stop=should_stop)
        except QueryError:
            if query.max_tokens == 1:
                raise
            shortest = self._answer(replace(query, max_tokens=1), frames, until)
            room = self._num_positions - shortest.counts.num_prompt_tokens
            return shortest if room <= 1 else self._answer(replace(query, max_tokens=room), frames, until)

    def _frames(self, doc_to_visual: Callable[..., Any] | None, doc_id: int, task: str, split: str) -> list[Frame]:
        visuals = doc_to_visual(self.task_dict[task][split][doc_id]) if doc_to_visual else None
        return frames_of(visuals, self._num_frames)

    def _continuation(self, context: str, target: Any, *place: Any) -> str:
        text = target
        if callable(target):
            _, doc_id, task, split = place
            text = target(self.task_dict[task][split][doc_id])
        return str(text).strip()

    def _check(self, settings: Mapping[str, Any]) -> None:
        temperature = settings.get("temperature") or 0
        samples = settings.get("do_sample", temperature > 0)
        if samples or (settings.get("num_beams") or 1) != 1:
            asked = {name: settings[name] for name in sorted(_READ & settings.keys() - {"until", "max_new_tokens"})}
            fix = "add --gen_kwargs temperature=0,do_sample=False,num_beams=1"
            raise ConfigError(f"answers are decoded greedily, and the task asks for {asked}; {fix}")
        for name in sorted(settings.keys() - _READ - _WITHOUT_EFFECT - self._warned):
            self._warned.add(name)
            _log.warning("generation_kwargs %s=%r has no effect on nvila_ros", name, settings[name])

    def _with_progress(self, requests: Sequence[Instance]) -> Iterable[Instance]:
        return track(requests, "asking", console=Console(stderr=True), disable=self.rank != 0)


def frames_of(visuals: Any, num_frames: int) -> list[Frame]:
    """Return the frames of what a task shows with a question, each image of a camera of its own, a video of one.

    Args:
        visuals: a picture of PIL, the path of an image or video, a dict with such a path or picture as `url` or `path`
            and maybe `video_start` and `video_end` in seconds, or a list of these.
        num_frames: the most of a video.

    Raises:
        FrameError: a medium is of another kind or cannot be read, or a video is not alone.
    """
    shown = [_clip(visual, num_frames) for visual in _flatten(visuals)]
    if len(shown) > 1 and any(len(clip) > 1 for clip in shown):
        raise FrameError(f"a video must be alone with its question, got {len(shown)} media")
    return [
        Frame(image=image, stamp_ns=k, camera=f"medium {number}")
        for number, clip in enumerate(shown)
        for k, image in enumerate(clip)
    ]


def _flatten(visuals: Any) -> list[Any]:
    if visuals is None:
        return []
    return (
        [each for visual in visuals for each in _flatten(visual)] if isinstance(visuals, (list, tuple)) else [visuals]
    )


def _clip(visual: Any, num_frames: int) -> list[np.ndarray]:
    start_s, end_s = 0.0, None
    if isinstance(visual, Mapping):
        start_s, end_s = float(visual.get("video_start") or 0), visual.get("video_end")
        visual = visual.get("url") or visual.get("path")
    if isinstance(visual, Image.Image):
        return [np.asarray(visual.convert("RGB"))]
    if not isinstance(visual, (str, Path)):
        raise FrameError(
            f"a medium must be a picture of PIL or the path of an image or video, got {type(visual).__name__}"
        )
    media = open_media(visual)
    try:
        most = 1 if Path(visual).suffix.lower() in IMAGE_SUFFIXES else num_frames
        return [frame.image for frame in read_clip(media, most, start_s, end_s)]
    finally:
        media.close()


def _same_question(request: Instance) -> tuple[Any, ...]:
    context, _, *place = request.args
    return (context, *place[1:])  # not how its media are found, which is the same for a task


def _plain(context: str) -> str:
    """Return a context without the tag that marks where other models insert an image; here media come first."""
    return context.replace("<image>", "").strip()


def _stops(settings: Mapping[str, Any]) -> list[str]:
    until = settings.get("until") or []
    return [stop for stop in ([until] if isinstance(until, str) else until) if stop]
