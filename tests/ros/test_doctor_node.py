"""The doctor's trial of the node: the real node and camera, over the middleware of this machine."""

from nvila_ros.tools.doctor.trials import TrialOutcome, try_node


def test_node_answers_about_a_camera() -> None:
    tried = try_node()

    assert tried.outcome is TrialOutcome.WORKS, tried.detail
    assert tried.figures["frames"]
