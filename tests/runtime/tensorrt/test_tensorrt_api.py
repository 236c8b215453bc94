"""What is used of TensorRT exists in every version that robots have; the table is made by `tensorrt_names.py`."""

import json

import pytest

from nvila_ros.errors import BackendError
from nvila_ros.runtime.tensorrt import api
from tests.runtime.tensorrt.tensorrt_names import TABLE, VERSIONS, used_names

RTX_ONLY = {
    *("ComputeCapability", "num_compute_capabilities", "set_compute_capability"),
    *("DynamicShapesKernelSpecializationStrategy", "EAGER", "dynamic_shapes_kernel_specialization_strategy"),
}
WITH_EAGER = {"create_runtime_config", "set_execution_context_allocation_strategy"}
"""Of older versions missing; only asked for where `EAGER` is."""
SINCE_10_15 = {"add_kv_cache_update"}
MISSING = {
    "10.3.0": RTX_ONLY | WITH_EAGER | SINCE_10_15,
    "10.13.3.9": RTX_ONLY | SINCE_10_15,
    "10.16.1.11": RTX_ONLY,
    "11.4.0.106": RTX_ONLY,
}


def test_table_tells_of_every_name_that_is_used() -> None:
    assert used_names() == json.loads(TABLE.read_text()).keys(), "run: python -m tests.runtime.tensorrt.tensorrt_names"


@pytest.mark.parametrize("version", VERSIONS)
def test_names_exist_in_the_bindings_of(version: str) -> None:
    table = json.loads(TABLE.read_text())

    assert {name for name, versions in table.items() if version not in versions.split()} == MISSING[version]


def test_names_exist_in_the_bindings_of_rtx() -> None:
    try:
        trt = api.load_api("tensorrt_rtx")
    except BackendError as error:
        pytest.skip(str(error))
    homes = [trt, *(thing for thing in vars(trt).values() if isinstance(thing, type))]
    arguments = {"ignore_mismatch"}

    assert {name for name in used_names() if not any(hasattr(home, name) for home in homes)} == arguments


def test_unknown_flavour_is_refused() -> None:
    with pytest.raises(BackendError, match=r"unknown flavour of TensorRT 'cuda'; known are"):
        api.load_api("cuda")


def test_flavour_that_is_not_installed_is_told_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(api.FLAVOURS, "tensorrt", ("no_such_module",))

    with pytest.raises(BackendError, match=r"tensorrt cannot be loaded \(No module named 'no_such_module'\)"):
        api.load_api("tensorrt")
