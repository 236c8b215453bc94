"""What a server's GPU does for a fleet: by hand where that is easy, and in order everywhere."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.builds.fleet import MAX_BATCH, UTILIZATION, batch_step_s, forecast_fleet
from nvila_ros.builds.planning import DEVICES, FITTED, GB, Shares, Work, step_s, vision_s, work_of
from nvila_ros.models.variants import QUESTION_TOKENS, VARIANTS, clip_cost, image_cost, weight_bytes
from nvila_ros.tools.cli import main

LITE_2B = VARIANTS["NVILA-Lite-2B"].spec
PERFECT = Shares(bandwidth=1, vision=1, int8_gain=1, prefill=1, layer_us=0)
NAMES = st.sampled_from(list(DEVICES))


def test_a_step_of_a_batch_reads_the_weights_once_and_the_keys_of_each() -> None:
    work = Work(num_layers=1, step_bytes=68e9, kv_bytes=68e6, token_flops=1.0)

    assert batch_step_s(work, DEVICES["orin-nano"], 100, 1, PERFECT) == pytest.approx(1.1)
    assert batch_step_s(work, DEVICES["orin-nano"], 100, 10, PERFECT) == pytest.approx(2.0)


def test_a_step_of_a_large_batch_is_bound_by_arithmetic() -> None:
    work = Work(num_layers=1, step_bytes=68e9, kv_bytes=0, token_flops=1e12)

    assert batch_step_s(work, DEVICES["orin-nano"], 0, 200, PERFECT) == pytest.approx(20.0)


def test_a_question_takes_its_pictures_its_prompt_and_its_share_of_the_steps() -> None:
    device, media = DEVICES["a100"], image_cost(LITE_2B, 6)
    work = work_of(LITE_2B, "fp16", "fp16")
    num_prompt = media.num_positions + QUESTION_TOKENS

    found = forecast_fleet(LITE_2B, device, media, num_answer=10)

    compute_s = work.token_flops * num_prompt / (312e12 * FITTED.prefill)
    steps_s = 10 * batch_step_s(work, device, num_prompt, found.batch, FITTED) / found.batch
    alone_s = vision_s(work, device, media.num_tiles, FITTED) + compute_s
    assert found.question_s == pytest.approx(alone_s + steps_s)
    assert found.answers_per_s == pytest.approx(1 / found.question_s)
    assert found.first_s == pytest.approx(alone_s + step_s(work, device, num_prompt, FITTED))
    assert found.batch == MAX_BATCH


def test_memory_bounds_the_batch() -> None:
    media, work = clip_cost(LITE_2B, 8), work_of(LITE_2B, "fp16", "fp16")
    per_answer = work.kv_bytes * (media.num_positions + QUESTION_TOKENS + 4)
    weights = sum(weight_bytes(LITE_2B, "fp16").values())
    small = dataclasses.replace(DEVICES["l4"], memory_gb=(weights + 3.5 * per_answer) / GB + 1, reserved_gb=1)

    assert forecast_fleet(LITE_2B, small, media, num_answer=4).batch == 3
    tiny = dataclasses.replace(small, memory_gb=1.5)
    none = forecast_fleet(LITE_2B, tiny, media, num_answer=4)
    assert (none.batch, none.robots(1.0), none.num_gpus(5, 1.0)) == (0, 0, 0)


@given(NAMES, st.integers(1, 200), st.integers(1, 300), st.floats(0.01, 20.0))
def test_gpus_suffice_and_one_less_would_not(name: str, num_answer: int, num_robots: int, rate_hz: float) -> None:
    found = forecast_fleet(LITE_2B, DEVICES[name], image_cost(LITE_2B, 4), num_answer=num_answer)
    if not found.batch:
        return
    num_gpus, capacity = found.num_gpus(num_robots, rate_hz), UTILIZATION * found.answers_per_s

    assert (num_gpus - 1) * capacity < num_robots * rate_hz <= num_gpus * capacity * (1 + 1e-6)
    assert found.robots(rate_hz) * rate_hz <= capacity * (1 + 1e-6) < (found.robots(rate_hz) + 1) * rate_hz * (1 + 2e-6)
    assert found.loaded_first_s > found.first_s


@given(NAMES, st.integers(1, 100))
def test_longer_answers_and_more_pictures_serve_fewer_robots(name: str, num_answer: int) -> None:
    device = DEVICES[name]
    base, longer, larger = (
        forecast_fleet(LITE_2B, device, image_cost(LITE_2B, tiles), num_answer=tokens)
        for tiles, tokens in ((2, num_answer), (2, num_answer + 1), (8, num_answer))
    )

    assert base.answers_per_s >= longer.answers_per_s
    assert base.answers_per_s >= larger.answers_per_s


def test_the_verb_prints_a_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "nvila-lite-2b.rtx-4090", "--device", "h100", "--fleet", "40", "--rate", "0.5"]

    assert main(arguments) == 0
    assert "40 robots that each ask 0.5 times a second" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["robots"] == 40
    assert {each["device"] for each in found["forecasts"]} == {"h100"}
    assert all(each["gpus"] >= 1 for each in found["forecasts"])


@pytest.mark.parametrize("arguments", [["--fleet", "0"], ["--fleet", "4", "--rate", "0"], ["--rate", "x"]])
def test_what_is_no_fleet_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["plan", "nvila-lite-2b.rtx-4090", *arguments])

    assert stop.value.code == 2
