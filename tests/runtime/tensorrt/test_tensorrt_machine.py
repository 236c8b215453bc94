"""What plans are bound to is read from TensorRT and the GPU, and named so that files and people can tell it."""

from types import SimpleNamespace

import pytest

from nvila_ros.errors import BackendError
from nvila_ros.runtime.tensorrt import api
from nvila_ros.runtime.tensorrt import machine as tensorrt_machine
from nvila_ros.runtime.tensorrt.cuda import Cuda
from nvila_ros.runtime.tensorrt.machine import Machine, find_machine, load_first, name_machine
from tests.runtime.tensorrt.fake_tensorrt import FakeCudart


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flavours that are installed, of version 1.2; the GPU is the stand-in's."""
    names: list[str] = []

    def load_api(flavour: str) -> SimpleNamespace:
        if flavour not in names:
            raise BackendError(f"{flavour} cannot be loaded")
        return SimpleNamespace(__version__="1.2", ComputeCapability=SimpleNamespace(SM87=1, SM89=2))

    monkeypatch.setattr(api, "load_api", load_api)
    monkeypatch.setattr(tensorrt_machine, "open_cuda", lambda: Cuda(FakeCudart()))
    return names


def test_machine_is_told_by_flavour_version_and_gpu(installed: list[str]) -> None:
    installed.append("tensorrt")

    trt, machine, _ = find_machine(api.FLAVOURS)

    assert trt.__version__ == "1.2"
    assert machine == Machine(flavour="tensorrt", version="1.2", architecture="sm_87", num_sms=16)
    assert (machine.label, str(machine)) == (
        "tensorrt-1.2.sm_87x16",
        "tensorrt 1.2 on sm_87 of 16 multiprocessors",
    )


def test_plans_of_rtx_are_for_every_size_of_a_gpu(installed: list[str]) -> None:
    installed.append("tensorrt_rtx")

    machine = find_machine(api.FLAVOURS)[1]

    assert (machine.num_sms, machine.label, machine.target) == (0, "tensorrt_rtx-1.2.sm_87", "SM87")


def test_gpu_at_hand_that_rtx_does_not_run_on_is_refused_before_anything_is_compiled(
    installed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed.append("tensorrt_rtx")
    monkeypatch.setattr(Cuda, "describe", lambda cuda: ("sm_90", 132))

    with pytest.raises(
        BackendError, match=r"1.2 runs on no GPU 'SM90', only on \['SM87', 'SM89'\]; use TensorRT itself"
    ):
        find_machine(api.FLAVOURS)
    installed.append("tensorrt")
    assert find_machine(api.FLAVOURS)[1].target == ""


def test_first_flavour_that_is_installed_is_taken(installed: list[str]) -> None:
    with pytest.raises(BackendError, match="tensorrt cannot be loaded; tensorrt_rtx cannot be loaded"):
        load_first(api.FLAVOURS)
    installed += ["tensorrt_rtx"]
    assert load_first(api.FLAVOURS)[1] == "tensorrt_rtx"
    installed += ["tensorrt"]
    assert load_first(api.FLAVOURS)[1] == "tensorrt"


def test_gpu_that_is_not_here_is_named_as_cuda_names_it() -> None:
    try:
        trt, machine = name_machine("SM120")
    except BackendError as error:
        pytest.skip(str(error))

    assert machine == Machine(flavour="tensorrt_rtx", version=trt.__version__, architecture="sm_120", num_sms=0)
    with pytest.raises(BackendError, match=r"runs on no GPU 'SM87', only on \['SM120'"):
        name_machine("SM87")
