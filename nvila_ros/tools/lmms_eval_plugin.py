"""How lmms-eval finds this model: the entry point `lmms_eval.models`, which it loads whenever any model is asked for.

So nothing of ours is imported here; the class itself is in `lmms_eval_model`.
"""

from __future__ import annotations

from lmms_eval.models.registry_v2 import ModelManifest

MODEL_NAME = "nvila_ros"


def manifest() -> ModelManifest:
    """Return under which name lmms-eval offers which class."""
    return ModelManifest(model_id=MODEL_NAME, simple_class_path="nvila_ros.tools.lmms_eval_model.NvilaRos")
