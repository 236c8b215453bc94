"""Golden cases on disk: a question with media, and what the reference computes at every stage.

A case is `NAME.fp32.json` (the prompt's parts in `question`) with `NAME.fp32.safetensors` beside it (whichever stages
were kept), in a folder with the checkpoint as `ckpt` or `ckpt_hf`; pictures and clips lie in a `media` folder there or
above.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from nvila_ros.errors import ConfigError, FrameError
from nvila_ros.files import read_json
from nvila_ros.generation.decode import decode_greedy
from nvila_ros.generation.generator import embed_prompt
from nvila_ros.models.spec import ModelSpec
from nvila_ros.prompt.chat import PLACEHOLDER, MediaTokens, PromptPart, build_prompt
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.contract import Engine
from nvila_ros.video.media import IMAGE_SUFFIXES
from nvila_ros.video.pictures import decode_picture, read_file
from nvila_ros.video.video_file import VideoFile
from nvila_ros.visual.encode import VisualPrompt, arrange, merge_features
from nvila_ros.visual.tiles import normalize_tiles
from nvila_ros.visual.views import View, view_clip, view_image, view_images, whole_groups

SUFFIX = ".fp32.json"
MEDIA = "media/"
NUM_AXES = {"input_ids": 2, "inputs_embeds": 3, "logits": 3, "last_logits": 3, "greedy_ids": 2, "answer_ids": 2}
MAX_ANSWER = 32
"""Ids at which the reference ends an answer without a stop token."""
Images = list[np.ndarray]


@dataclass(frozen=True, slots=True)
class Case:
    """One case.

    Attributes:
        question: the user's turn: text, and paths that begin with `media/`.
        num_frames: frames that each clip was sampled to, in order; empty leaves the checkpoint's number.
        num_images: images that the reference was shown.
        is_video_as_images: it was shown each frame of a clip as an image of its own.
        want: the reference's tensors by stage.
    """

    path: Path
    question: tuple[str, ...]
    num_frames: tuple[int, ...]
    num_images: int
    is_video_as_images: bool
    want: dict[str, np.ndarray]

    @property
    def name(self) -> str:
        """The name of the case without its suffix."""
        return self.path.name.removesuffix(SUFFIX)


def find_cases(root: Path) -> list[Path]:
    """Return every case file below a folder."""
    return sorted(root.rglob(f"*{SUFFIX}"))


def read_case(path: Path) -> Case:
    """Read a case.

    Raises:
        ConfigError: a file is missing or not in the format.
    """
    tensors = path.with_name(path.name.removesuffix(".json") + ".safetensors")
    try:
        values = read_json(path)
        question, media = tuple(values["question"]), values.get("media") or {}
        if not all(isinstance(entry, str) for entry in question):
            raise TypeError(f"question must be a list of texts, got {question}")
        case = Case(
            path=path,
            question=question,
            num_frames=tuple(int(shape[0]) for shape in media.get("video") or []),
            num_images=len(media.get("image") or []),
            is_video_as_images=values.get("semantics") == "main",
            want=load_file(tensors),
        )
        if min(case.num_frames, default=1) < 1:
            raise ValueError(f"a clip must have frames, got {case.num_frames}")
        for name, array in case.want.items():
            if array.ndim != NUM_AXES.get(name.split(".")[0], array.ndim):
                raise ValueError(f"{name} must have {NUM_AXES[name.split('.')[0]]} axes, got {array.shape}")
        return case
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, SafetensorError) as error:
        raise ConfigError(f"{path} with {tensors.name} is no golden case: {type(error).__name__} {error}") from error


def compute(case: Case, engine: Engine, tokenizer: ChatTokenizer) -> dict[str, np.ndarray]:
    """Return what the engine gives at every stage of a case, under the reference's names; B is 1 where it has one.

    `logits` has every position where the engine gives them, else the last one alone; `projector_downsampled` is there
    where it shows what its projector's map reads.

    Raises:
        NvilaError: media are missing or unreadable, or the prompt holds no text.
    """
    by_kind: dict[str, dict[str, list[np.ndarray]]] = {}
    parts: list[PromptPart] = []
    media_ids: list[int] = []
    visual: list[np.ndarray] = []
    for entry in _views(case, engine.spec):
        if isinstance(entry, str):
            parts.append(entry)
            continue
        kind = "video" if entry.mode == "clip" else "image"
        stages = by_kind.setdefault(kind, {})
        seen = _encode(engine, entry, stages)
        for embeds_LD in _media_embeds(engine, tokenizer, seen):
            stages.setdefault(f"media_embeds.{kind}", []).append(embeds_LD)
            media_ids.append(tokenizer.video_id if kind == "video" else tokenizer.image_id)
        parts += seen.parts
        visual.append(seen.visual_GD)
    got = _join_kinds(by_kind)
    short = [MediaTokens((1,)) if isinstance(part, MediaTokens) else part for part in parts]
    input_ids = build_prompt(tokenizer, short)
    input_ids[input_ids == PLACEHOLDER] = media_ids
    empty_GD = np.empty((0, engine.spec.decoder.width), np.float32)
    embeds_LD = embed_prompt(engine, build_prompt(tokenizer, parts), np.concatenate([empty_GD, *visual]))
    num_ids = case.want["greedy_ids"].shape[-1] if "greedy_ids" in case.want else 0
    num_more = max(num_ids, MAX_ANSWER if "answer_ids" in case.want else 0)
    if len(embeds_LD) + num_more > engine.spec.decoder.max_positions:
        raise ConfigError(
            f"{case.path} has {len(embeds_LD)} positions and {num_more} ids, which must fit "
            f"{engine.spec.decoder.max_positions}"
        )
    logits, ids = _decode(engine, tokenizer, embeds_LD, num_more)
    return got | {
        "input_ids": input_ids[None],
        "inputs_embeds": embeds_LD[None],
        "logits": logits[None],
        "last_logits": logits[None, -1:],
        "greedy_ids": ids[None, :num_ids],
        **({"answer_ids": ids[None, : _answer_length(ids, tokenizer)]} if "answer_ids" in case.want else {}),
    }


def _join_kinds(by_kind: dict[str, dict[str, list[np.ndarray]]]) -> dict[str, np.ndarray]:
    """Return the stages as the reference collects them: all media of one kind, kinds by their first appearance."""
    got: dict[str, list[np.ndarray]] = {}
    for stages in by_kind.values():
        for name, arrays in stages.items():
            if name.startswith("media_embeds."):
                got |= {f"{name}.{i}": [array] for i, array in enumerate(arrays)}
            else:
                got.setdefault(name, []).extend(arrays)
    return {name: np.concatenate(arrays) for name, arrays in got.items()}


def _views(case: Case, spec: ModelSpec) -> Iterator[View | str]:
    """Yield the parts of the question in order, media as views; only an image that is alone is cut."""
    paths = {entry: _find_media(case, entry) for entry in case.question if entry.startswith(MEDIA)}
    is_clip = {entry: path.is_dir() or path.suffix.lower() not in IMAGE_SUFFIXES for entry, path in paths.items()}
    shown = [is_clip[entry] for entry in case.question if entry in paths]
    num_clips, num_single = sum(shown), len(shown) - sum(shown)
    lengths = iter(case.num_frames)
    if case.is_video_as_images and num_clips:
        lengths = iter([(case.num_images - num_single) // num_clips] * num_clips)
    read: list[Images | str] = []
    for entry in case.question:
        if entry not in paths:
            read.append(entry)
        elif is_clip[entry]:
            read.append(_read_clip(paths[entry], next(lengths, spec.num_video_frames)))
        else:
            read.append([_read_image(paths[entry])])
    clips = iter(shown)
    for each in read:
        if isinstance(each, str):
            yield each
        elif next(clips) and not case.is_video_as_images:
            if whole_groups(spec, len(each)) != len(each):
                raise ConfigError(f"{case.path} has a clip of {len(each)}, which must fill groups of the pools")
            yield view_clip(spec, each)
        else:
            is_alone = num_single + num_clips * case.is_video_as_images == 1 and len(each) == 1
            yield view_image(spec, each[0]) if is_alone else view_images(spec, each)


def _encode(engine: Engine, view: View, stages: dict[str, list[np.ndarray]]) -> VisualPrompt:
    tile_NCHW = normalize_tiles(view.tiles, engine.spec.pixel_dtype)
    feat_NPE = np.concatenate([engine.vision(tile_NCHW[i : i + 1]) for i in range(len(tile_NCHW))])
    merged_BPE = merge_features(engine.spec, view, feat_NPE)
    visual_BGD = engine.project(merged_BPE)
    named = {"pixel_values": tile_NCHW, "vision_features": feat_NPE, "projector_in": merged_BPE}
    if downsample := getattr(engine, "downsample", None):
        named["projector_downsampled"] = downsample(merged_BPE)
    for name, array in (named | {"projector_out": visual_BGD}).items():
        stages.setdefault(name, []).append(array)
    return arrange(engine.spec, view, visual_BGD)


def _media_embeds(engine: Engine, tokenizer: ChatTokenizer, seen: VisualPrompt) -> Iterator[np.ndarray]:
    """Yield the embeddings of each media token: its visual tokens with what stands around them."""
    start = 0
    for part in seen.parts:
        if isinstance(part, MediaTokens):
            runs = [
                [PLACEHOLDER] * run if isinstance(run, int) else tokenizer.encode_marked(run) for run in part.layout
            ]
            ids = np.array([i for run in runs for i in run], np.int64)
            yield embed_prompt(engine, ids, seen.visual_GD[start : start + part.num_visual])
            start += part.num_visual


def _decode(
    engine: Engine, tokenizer: ChatTokenizer, embeds_LD: np.ndarray, num_ids: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits, (L or 1, V), and the greedy ids; the reference does not stop, so neither does this."""
    cache = engine.new_cache(len(embeds_LD) + num_ids)
    last_V = engine.forward(embeds_LD, cache)
    forward_all = getattr(engine, "forward_all", None)
    logits = forward_all(embeds_LD) if forward_all else last_V[None]
    never = tokenizer.never_sampled(engine.spec.decoder.vocab_size)
    tokens = decode_greedy(engine, last_V, cache, stop_ids=(), never=never)
    return logits, np.array([token for _, token in zip(range(num_ids), tokens, strict=False)], np.int64)


def _answer_length(ids: np.ndarray, tokenizer: ChatTokenizer) -> int:
    """Return how many ids an answer has with its stop token, which the reference keeps."""
    stops = np.flatnonzero(np.isin(ids[:MAX_ANSWER], list(tokenizer.stop_ids)))
    return int(stops[0]) + 1 if stops.size else MAX_ANSWER


def _find_media(case: Case, entry: str) -> Path:
    roots = [folder for folder in case.path.resolve().parents if (folder / entry).exists()]
    if not roots:
        raise ConfigError(f"{case.path} asks about {entry}, which lies in none of its folders; copy it there")
    return roots[0] / entry


def _read_clip(path: Path, num_frames: int) -> Images:
    """Return the frames of a folder or video as the reference samples them."""
    if not path.is_dir():
        with VideoFile(path) as video:
            return [video.read(i) for i in _uniform(video.num_frames, num_frames)]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ConfigError(f"{path} holds no image")
    return [_read_image(files[i]) for i in _uniform(len(files), num_frames)]


def _read_image(path: Path) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB; alpha is dropped and an orientation is not followed, as the reference does."""
    try:
        return decode_picture(read_file(path), follow_orientation=False)
    except FrameError as error:
        raise ConfigError(f"{path} cannot be read as an image: {error}") from error


def _uniform(num_held: int, num_frames: int) -> list[int]:
    """Return the indices that the reference samples; numpy rounds halves to even, as it does."""
    return np.round(np.linspace(0, num_held - 1, num_frames)).astype(int).tolist()
