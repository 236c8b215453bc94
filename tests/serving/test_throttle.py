from nvila_ros.serving.throttle import MAX_KINDS, Throttle
from nvila_ros.types import NS_PER_S


def test_each_kind_is_due_by_itself() -> None:
    throttle = Throttle(5.0)
    asked = [("a", 0), ("b", 1), ("a", 4), ("a", 5), ("b", 5), ("b", 6)]

    assert [throttle.is_due(kind, second * NS_PER_S) for kind, second in asked] == [
        True,
        True,
        False,
        True,
        False,
        True,
    ]


def test_kinds_are_bounded_and_the_oldest_is_forgotten() -> None:
    throttle = Throttle(3600.0)
    assert all(throttle.is_due(kind, kind) for kind in range(2 * MAX_KINDS))

    assert not throttle.is_due(2 * MAX_KINDS - 1, 2 * MAX_KINDS)
    assert throttle.is_due(0, 2 * MAX_KINDS)
    assert len(throttle._reported_ns) == MAX_KINDS
