"""Settings of a tuning are refused by their rule before anything is read."""

from typing import Any

import pytest

from nvila_ros.errors import ConfigError
from nvila_ros.training.finetuning.settings import Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tower": "half"}, "tower must be one of"),
        ({"llm": "layernorm"}, "llm must be one of"),
        ({"precision": "fp8", "llm": "lora"}, "fp8 is for the linear maps of a language model that learns as a whole"),
        ({"precision": "fp8", "llm": "full", "is_sharded": True}, "and sharded"),
        ({"warmup": 1.0}, r"a share of the steps in \[0, 1\), got 1.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings(**settings)
