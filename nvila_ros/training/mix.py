"""What the steps of a training stage hold."""

from __future__ import annotations

from dataclasses import dataclass

from nvila_ros.training.moments import PALETTE_SHARE
from nvila_ros.world.wide_scenes import Look


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What a stage's steps hold.

    Attributes:
        kinds: of batches, by turns: `dense` labels of frames, `images`, images `scaled`, `clips`, `events` that few
            frames show, `quick` events, `timed` events; `wide` images, clips, events and
            dense labels.
        seed_base: of the first scene.
        num_samples: of a batch of single frames of one tile.
        num_clips: of any other batch.
        num_dense: of a batch of `wide-dense`, which costs little.
        num_turns: questions of a sample.
        clip_grids: frames of a clip and how many of them are averaged, drawn from for each batch.
        small_share: share of the images that show small things.
        relations: asked about more often than others.
        more_kinds: of question that frames are asked more often than others, where no relations are.
        num_more: questions of a frame, of its num_turns, about those.
        palette_share: share of the images that show things of two colours alone.
        least_of_palette: things in such an image.
        least_objects: things in a clip of events.
        has_patches: whether patches are labelled where questions are asked, as is of use while the tower learns.
        has_events: whether what happens under visual tokens is labelled, as is of use while clips are new.
        look: of `wide` images and `wide-clips`, which are asked about in many words.
        second_camera_share: share of those that the second camera shows.
    """

    kinds: tuple[str, ...]
    seed_base: int
    num_samples: int
    num_clips: int = 0
    num_dense: int = 0
    num_turns: int = 8
    clip_grids: tuple[tuple[int, int], ...] = ((2, 1), (4, 1), (6, 1), (8, 1), (8, 1), (8, 1))
    small_share: float = 0.0
    relations: tuple[str, ...] = ()
    more_kinds: tuple[str, ...] = ()
    num_more: int = 0
    palette_share: float = PALETTE_SHARE
    least_of_palette: int = 1
    least_objects: int = 2
    has_patches: bool = True
    has_events: bool = True
    look: Look | None = None
    second_camera_share: float = 0.0
