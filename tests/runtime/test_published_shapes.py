"""What docs/checkpoints.md says of backends: there are kernels for every published model, and recipes that read."""

from __future__ import annotations

import dataclasses

import pytest

from nvila_ros.hub.published import published
from nvila_ros.models.variants import VARIANTS
from nvila_ros.runtime.cpu.native_decoder import UnknownFormError, check_kernels
from nvila_ros.tools.fetch import PUBLISHED_COLUMNS, published_rows

ROWS = {row[0]: dict(zip(PUBLISHED_COLUMNS, row, strict=True)) for row in published_rows()}


@pytest.mark.parametrize("variant", sorted({row.variant for row in published().values() if row.variant}))
def test_a_cpu_has_kernels_for_its_shapes(variant: str) -> None:
    decoder = VARIANTS[variant].spec.decoder
    check_kernels(decoder)

    with pytest.raises(UnknownFormError, match="widths must be multiples"):
        check_kernels(dataclasses.replace(decoder, mlp_width=decoder.mlp_width + 1))


def test_backends_are_told_of_what_loads_alone() -> None:
    for name, row in published().items():
        assert bool(ROWS[name]["backends"]) == (row.state == "loads"), name
    assert ROWS["NVILA-8B"]["backends"] == "all; recipes agx-orin, rtx-4090, thor"
    assert "cpu" in ROWS["NVILA-Lite-2B"]["backends"]
    assert ROWS["NVILA-15B"]["backends"] == "all; tensorrt by a recipe of yours"
