"""Single visual tokens left out of a clip, which `visual.changes` does not do: to show why not.

Key frames keep all tokens, the frames between those that differ from the last token kept at their place. The tokens
that are kept follow each other closely, or stand at the positions that they had: then the engine is asked for a tree of
one branch, whose positions have gaps.

Shapes: F frames, G visual tokens of a frame, L tokens in a call, D decoder width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nvila_ros.prompt.chat import PLACEHOLDER, MediaTokens, build_prompt
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.contract import Engine, Tree
from nvila_ros.visual.changes import ChangeRule
from nvila_ros.visual.encode import VisualPrompt
from nvila_ros.visual.frame_encoder import FrameEncoder, FrameLike, ProgressHook


class SpacedEngine:
    """An engine whose tokens stand at given positions.

    Attributes:
        positions_L: of the first rows of a cache; those behind follow closely.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.positions_L = np.zeros(0, np.int64)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def forward(self, embeds_LD: np.ndarray, cache: Any) -> np.ndarray:
        """Append L tokens and return the logits after the last one, (V,)."""
        rows_L = np.arange(cache.length, cache.length + len(embeds_LD))
        sees_LM = np.arange(rows_L[-1] + 1) <= rows_L[:, None]
        return self.forward_tree(embeds_LD, cache, Tree(rows_L, sees_LM, np.array([len(rows_L) - 1])))[0]

    def forward_tree(self, embeds_LD: np.ndarray, cache: Any, tree: Tree) -> np.ndarray:
        """Append L tokens of several branches, whose positions are rows so far, and return the wanted logits."""
        known, rows_L = self.positions_L, tree.positions_L
        if len(known):
            behind_L = rows_L - len(known) + known[-1] + 1
            tree = replace(
                tree, positions_L=np.where(rows_L < len(known), known[np.minimum(rows_L, len(known) - 1)], behind_L)
            )
        return self._engine.forward_tree(embeds_LD, cache, tree)


class SingleTokenEncoder(FrameEncoder):
    """Shows a clip, pooled over nothing, without the tokens that hardly changed.

    Args:
        engine: runs the model; its positions are set where they are to be as they were.
        tokenizer: its own.
        max_bytes: of visual tokens kept.
        rule: what is left out.
        is_spaced: tokens stand at the positions that they had.
    """

    def __init__(
        self, engine: SpacedEngine, tokenizer: ChatTokenizer, max_bytes: int, rule: ChangeRule, *, is_spaced: bool
    ) -> None:
        super().__init__(engine, max_bytes, 0.0)
        self._spaced, self._tokenizer, self._rule, self._is_spaced = engine, tokenizer, rule, is_spaced

    def encode_frames(
        self, frames: Sequence[FrameLike], progress: ProgressHook, *, is_anchored: bool = False
    ) -> VisualPrompt:
        """Return the tokens of a clip that are kept, and how the prompt shows them."""
        encoded = [self.encode(frame, progress, is_alone=len(frames) == 1) for frame in frames]
        visual_FGD = np.concatenate([each.visual_BGD for each in encoded])
        kept_FG = keep_changed(visual_FGD, self._rule)
        end = self._spec.video_wrap.end
        layout = [run for number in kept_FG.sum(axis=1).tolist() for run in (number, end) if run]
        parts = (MediaTokens(tuple(layout)),)
        if self._is_spaced:
            ids_L = build_prompt(self._tokenizer, [*parts, "?"])
            before = int(np.flatnonzero(ids_L == PLACEHOLDER)[0])
            ends_F = np.ones((len(kept_FG), len(self._tokenizer.encode_marked(end))), bool)
            shown_L = np.flatnonzero(np.concatenate([kept_FG, ends_F], axis=1))
            self._spaced.positions_L = np.concatenate([np.arange(before), before + shown_L])
        return VisualPrompt(visual_FGD[kept_FG], parts, tuple(range(len(frames))))


def keep_changed(visual_FGD: np.ndarray, rule: ChangeRule) -> np.ndarray:
    """Return whether each token of a clip is kept, (F, G)."""
    unit_FGD = visual_FGD / np.linalg.norm(visual_FGD, axis=-1, keepdims=True)
    kept_FG = np.ones(visual_FGD.shape[:2], bool)
    last_GD = unit_FGD[0].copy()
    for index, unit_GD in enumerate(unit_FGD):
        if index % rule.key_every:
            kept_FG[index] = 1 - (unit_GD * last_GD).sum(axis=-1) > rule.threshold
        last_GD[kept_FG[index]] = unit_GD[kept_FG[index]]
    return kept_FG
