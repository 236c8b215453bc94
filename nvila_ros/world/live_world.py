"""An endless world for a live camera."""

from functools import lru_cache

import numpy as np

from nvila_ros.world.scene import EVAL_SEED_BASE, Scene
from nvila_ros.world.scene_sampler import sample_scene


class LiveWorld:
    """An endless world for a live camera: a new held-out scene every scene_s, by turns still and moving.

    Any process that knows the seed can recompute what a camera saw at a time.
    """

    def __init__(self, seed: int, scene_s: float = 4.0, *, aspect: float = 4 / 3) -> None:
        """Set the world up; nothing is drawn before it is asked for."""
        self.seed, self.scene_s, self.aspect = seed, scene_s, aspect
        self._scene = lru_cache(maxsize=16)(self._sample)

    def _sample(self, index: int) -> Scene:
        rng = np.random.default_rng((EVAL_SEED_BASE + self.seed, index))
        # A window of half the scene still sees a way that training has seen in a whole clip.
        return sample_scene(
            rng, aspect=self.aspect, duration_s=self.scene_s, is_moving=index % 2 == 1, shift=(0.36, 0.6)
        )

    def scene_at(self, t_s: float) -> tuple[int, Scene, float]:
        """Index of the scene shown t_s seconds (>= 0) after the start, the scene, and the time within it."""
        index = int(t_s // self.scene_s)
        return index, self._scene(index), t_s - index * self.scene_s
