"""The losses of a run: a line a step, as far as its state."""

from pathlib import Path

from nvila_ros.training.finetuning.state import LossLog, read_losses


def test_line_that_a_kill_cut_off_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "losses.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "lo')

    log = LossLog(path, 1)
    log.add({"step": 2, "loss": 3.0})

    assert read_losses(path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 3.0}]
