"""The roofline: its parts by hand, its order, and its fit on what was published."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.plan import WORST, fit
from nvila_ros.builds.planning import (
    DEVICES,
    FITTED,
    QUANTIZED,
    Forecast,
    Shares,
    Work,
    forecast,
    prefill_s,
    step_s,
    work_of,
)
from nvila_ros.builds.published import EDGE, ROWS, predict
from nvila_ros.models.variants import PRECISIONS, VARIANTS, clip_cost, image_cost
from nvila_ros.tools.cli import main

LITE_2B, LITE_8B = VARIANTS["NVILA-Lite-2B"].spec, VARIANTS["NVILA-Lite-8B"].spec
PERFECT = Shares(bandwidth=1, vision=1, int8_gain=1, prefill=1, layer_us=0)


def test_shares_are_those_that_fit_what_was_published() -> None:
    assert fit() == FITTED


def test_forecast_is_near_every_row_of_the_nearest_engine() -> None:
    errors = [abs(predict(row, FITTED) / row.value - 1) for row in ROWS if row.source == EDGE]

    assert len(errors) == 16
    assert max(errors) <= WORST


def test_step_is_bytes_over_bandwidth_and_a_fixed_time_a_layer() -> None:
    work = Work(num_layers=10, step_bytes=68e9, kv_bytes=68e6, token_flops=1)

    assert step_s(work, DEVICES["orin-nano"], 0, PERFECT) == pytest.approx(1.0)
    assert step_s(work, DEVICES["orin-nano"], 1000, PERFECT) == pytest.approx(2.0)
    slow = dataclasses.replace(PERFECT, bandwidth=0.5, layer_us=100)
    assert step_s(work, DEVICES["orin-nano"], 0, slow) == pytest.approx(2.001)


def test_short_prompt_takes_no_less_than_reading_the_weights() -> None:
    work = Work(num_layers=1, step_bytes=68e9, kv_bytes=0, token_flops=1e9)

    assert prefill_s(work, DEVICES["orin-nano"], 1, PERFECT) == pytest.approx(1.0)
    assert prefill_s(work, DEVICES["orin-nano"], 100_000, PERFECT) == pytest.approx(10.0)


def test_work_of_published_shapes_by_hand() -> None:
    fp16 = work_of(LITE_8B, "fp16", "fp16")

    linear = 28 * (3584 * 3584 * 2 + 2 * 3584 * 512 + 3 * 3584 * 18944)
    assert fp16.token_flops == 2 * linear
    assert fp16.step_bytes == pytest.approx(2 * (linear + 151648 * 3584), rel=1e-3)  # the head, not the embeddings
    assert fp16.kv_bytes == 2 * 2 * 28 * 4 * 128
    tower = 26 * (4 * 1152 * 1152 + 2 * 1152 * 4304)
    assert fp16.tile_flops == 2 * 1024 * tower + 4 * 26 * 1024 * 1024 * 1152
    tied = work_of(LITE_2B, "fp16", "fp16")
    assert tied.step_bytes > 2 * 151667 * 1536  # one table is both, so all of it is read


def test_head_and_groups_of_a_recipe_are_counted() -> None:
    table = 151667 * 1536

    for spec in (LITE_2B, LITE_8B):
        plain, quantized = (work_of(spec, QUANTIZED, QUANTIZED, is_head_int4=each).step_bytes for each in (False, True))
        rows, columns = spec.decoder.vocab_size, spec.decoder.width
        assert plain - quantized == rows * (2 * columns - columns // 2 - 4 * columns // 128)
    tied = work_of(LITE_2B, QUANTIZED, QUANTIZED, is_head_int4=True).step_bytes
    assert tied < work_of(LITE_2B, QUANTIZED, QUANTIZED).step_bytes - table
    assert work_of(LITE_2B, "fp16", "fp16", is_head_int4=True) == work_of(LITE_2B, "fp16", "fp16")
    linear = work_of(LITE_2B, QUANTIZED, QUANTIZED).token_flops / 2
    assert work_of(LITE_2B, QUANTIZED, QUANTIZED, group_size=32).step_bytes == pytest.approx(
        work_of(LITE_2B, QUANTIZED, QUANTIZED).step_bytes + linear * (4 / 32 - 4 / 128)
    )


@given(
    device=st.sampled_from(sorted(DEVICES)),
    name=st.sampled_from(sorted(VARIANTS)),
    frames=st.integers(1, 32),
    vision=st.sampled_from(PRECISIONS),
    decoder=st.sampled_from(PRECISIONS),
)
def test_more_frames_never_cost_less_and_quantizing_never_costs_more(
    device: str, name: str, frames: int, vision: str, decoder: str
) -> None:
    spec = VARIANTS[name].spec
    group = spec.frames_per_group

    def told(num_groups: int, vision: str = vision, decoder: str = decoder) -> Forecast:
        return forecast(spec, DEVICES[device], clip_cost(spec, num_groups * group), vision=vision, decoder=decoder)

    few, many, quantized = told(frames), told(frames + 1), told(frames, QUANTIZED, QUANTIZED)

    assert few.vision_s < many.vision_s
    assert few.prefill_s <= many.prefill_s
    assert few.tokens_per_s > many.tokens_per_s
    assert few.needed_gb < many.needed_gb
    assert quantized.needed_gb <= few.needed_gb
    assert quantized.tokens_per_s >= few.tokens_per_s
    assert quantized.vision_s <= few.vision_s


def test_memory_decides_what_fits() -> None:
    image = image_cost(LITE_8B, 8)

    assert not forecast(LITE_8B, DEVICES["orin-nano"], image).fits
    assert forecast(LITE_8B, DEVICES["orin-nx"], image).fits
    assert not forecast(LITE_8B, DEVICES["orin-nx"], image, decoder="fp16").fits
    assert forecast(LITE_2B, DEVICES["orin-nano"], image).fits


def plan(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    code = main(["plan", *args])
    return code, capsys.readouterr().out


def test_verb_tells_a_recipe_on_its_device(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = plan(capsys, "nvila-lite-2b.orin-nano")

    assert code == 0
    assert "orin-nano" in out
    assert "image 1280x720" in out
    assert "clip of 8" in out
    assert "not a measurement" in out


def test_verb_says_by_its_exit_code_that_a_model_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = plan(capsys, "nvila-8b.agx-orin", "--device", "orin-nano", "--json")

    told = json.loads(out)
    assert (code, told["fits"]) == (1, False)
    assert all(row["ttft_s"] == row["vision_s"] + row["prefill_s"] for row in told["forecasts"])


def test_verb_says_that_a_prompt_is_longer_than_the_recipe_lets(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model: NVILA-8B\ndevice: agx-orin\nvision: {precision: fp16}\n")

    code, out = plan(capsys, str(recipe), "--image", "1280x720")

    assert code == 1
    assert "too long: 3137 prompt tokens, limits.max_prompt_tokens lets 2048" in out
    assert plan(capsys, "nvila-8b.agx-orin")[0] == 0


def test_verb_tells_all_devices(capsys: pytest.CaptureFixture[str]) -> None:
    _, out = plan(capsys, "nvila-lite-2b.thor", "--all", "--json")

    assert {row["device"] for row in json.loads(out)["forecasts"]} == set(DEVICES)


def test_recipe_for_a_cpu_needs_a_device_to_plan_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "nvila-tiny.cpu"]) == 2
    assert "there is no roofline for 'cpu'; choose one of" in capsys.readouterr().err
    assert plan(capsys, "nvila-tiny.cpu", "--device", "orin-nano")[0] == 0


def test_every_row_has_a_device_and_a_positive_value() -> None:
    assert all(row.device in DEVICES and row.value > 0 for row in ROWS)
    assert np.isfinite([predict(row, FITTED) for row in ROWS]).all()
