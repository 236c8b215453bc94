"""The half of a build that quantizes: how it uses the machine."""

import os
from pathlib import Path

import pytest
import torch

from nvila_ros.builds.build_process import BuildProcess
from nvila_ros.builds.recipes import WORLD, CalibrationRecipe, DecoderRecipe, Recipe
from nvila_ros.builds.weights import make_weights
from nvila_ros.errors import BuildError
from nvila_ros.runtime.loading import find_checkpoint

RECIPE = Recipe(
    name="mine",
    model="nvila-tiny",
    device="cpu",
    decoder=DecoderRecipe(precision="fp16"),
    calibration=CalibrationRecipe(media=WORLD, num_samples=1),
)


def test_small_model_is_quantized_by_one_thread_and_reports_its_calibration(tmp_path: Path) -> None:
    before, threads = torch.get_num_threads(), {}
    torch.set_num_threads(2)
    try:
        make_weights(
            RECIPE,
            find_checkpoint("nvila-tiny"),
            tmp_path / "out",
            lambda part, done, total: threads.update({f"{part} {done}/{total}": torch.get_num_threads()}),
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)

    assert threads == {f"{part} {i}/5": 1 for part in ("calibration", "vision_tower") for i in range(1, 6)}


@pytest.mark.slow  # starts a build at the lowest priority, which a busy machine lets wait
def test_build_in_the_background_gives_way_inside_and_outside_of_its_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVILA_ROS_BUILDS", str(tmp_path))
    build = BuildProcess(["nvila-tiny.cpu"])
    lines = iter(build)
    try:
        process = Path("/proc", str(build._process.pid))
        next(lines)

        assert int((process / "stat").read_text().rpartition(")")[2].split()[16]) == min(os.nice(0) + 5, 19)
        if (process / "autogroup").exists():
            assert (process / "autogroup").read_text().strip().endswith("nice 5")
    finally:
        build.kill()
        with pytest.raises(BuildError, match="SIGKILL"):
            list(lines)
