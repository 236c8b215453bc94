"""The node as a managed node: the services and the topic of ROS 2's lifecycle, for `ros2 lifecycle` and Nav2's manager.

    unconfigured --configure--> inactive --activate--> active --deactivate--> inactive --cleanup--> unconfigured
    any of them --shutdown--> finalized

A transition may take minutes, since configuring loads or builds a model. rclpy's own lifecycle node runs transitions in
a callback that blocks the executor; here they are coroutines, so that frames and statuses go on meanwhile.

Source: design.ros2.org "Managed nodes"; ids and labels are those of lifecycle_msgs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from lifecycle_msgs.msg import State, Transition, TransitionDescription, TransitionEvent
from lifecycle_msgs.srv import ChangeState, GetAvailableStates, GetAvailableTransitions, GetState
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node

LABELS = {
    State.PRIMARY_STATE_UNKNOWN: "unknown",
    State.PRIMARY_STATE_UNCONFIGURED: "unconfigured",
    State.PRIMARY_STATE_INACTIVE: "inactive",
    State.PRIMARY_STATE_ACTIVE: "active",
    State.PRIMARY_STATE_FINALIZED: "finalized",
    State.TRANSITION_STATE_CONFIGURING: "configuring",
    State.TRANSITION_STATE_CLEANINGUP: "cleaningup",
    State.TRANSITION_STATE_SHUTTINGDOWN: "shuttingdown",
    State.TRANSITION_STATE_ACTIVATING: "activating",
    State.TRANSITION_STATE_DEACTIVATING: "deactivating",
    State.TRANSITION_STATE_ERRORPROCESSING: "errorprocessing",
}


class _Edge(NamedTuple):
    """A transition: its id and label, from where, through which state, and to where."""

    id: int
    label: str
    start: int
    via: int
    goal: int


EDGES = (
    _Edge(
        Transition.TRANSITION_CONFIGURE,
        "configure",
        State.PRIMARY_STATE_UNCONFIGURED,
        State.TRANSITION_STATE_CONFIGURING,
        State.PRIMARY_STATE_INACTIVE,
    ),
    _Edge(
        Transition.TRANSITION_CLEANUP,
        "cleanup",
        State.PRIMARY_STATE_INACTIVE,
        State.TRANSITION_STATE_CLEANINGUP,
        State.PRIMARY_STATE_UNCONFIGURED,
    ),
    _Edge(
        Transition.TRANSITION_ACTIVATE,
        "activate",
        State.PRIMARY_STATE_INACTIVE,
        State.TRANSITION_STATE_ACTIVATING,
        State.PRIMARY_STATE_ACTIVE,
    ),
    _Edge(
        Transition.TRANSITION_DEACTIVATE,
        "deactivate",
        State.PRIMARY_STATE_ACTIVE,
        State.TRANSITION_STATE_DEACTIVATING,
        State.PRIMARY_STATE_INACTIVE,
    ),
    *(
        _Edge(number, "shutdown", start, State.TRANSITION_STATE_SHUTTINGDOWN, State.PRIMARY_STATE_FINALIZED)
        for number, start in (
            (Transition.TRANSITION_UNCONFIGURED_SHUTDOWN, State.PRIMARY_STATE_UNCONFIGURED),
            (Transition.TRANSITION_INACTIVE_SHUTDOWN, State.PRIMARY_STATE_INACTIVE),
            (Transition.TRANSITION_ACTIVE_SHUTDOWN, State.PRIMARY_STATE_ACTIVE),
        )
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransitionActions:
    """What the node does in each transition; each returns why it failed, or an empty text.

    Attributes:
        configure: load or build the model.
        activate: answer from now on.
        deactivate: end what is open and answer no more.
        cleanup: release the model.
        shutdown: end the process in order.
    """

    configure: Callable[[], Awaitable[str]]
    activate: Callable[[], Awaitable[str]]
    deactivate: Callable[[], Awaitable[str]]
    cleanup: Callable[[], Awaitable[str]]
    shutdown: Callable[[], Awaitable[str]]


class Lifecycle:
    """Holds the state and serves the transitions; all on the executor's thread.

    Attributes:
        state: id, of lifecycle_msgs/State.
    """

    def __init__(self, node: Node, actions: TransitionActions) -> None:
        self.state = State.PRIMARY_STATE_UNCONFIGURED
        self._node, self._actions = node, actions
        self._events = node.create_publisher(TransitionEvent, "~/transition_event", 1)
        waiting = ReentrantCallbackGroup()
        node.create_service(ChangeState, "~/change_state", self._on_change, callback_group=waiting)
        node.create_service(GetState, "~/get_state", self._on_get_state)
        node.create_service(GetAvailableStates, "~/get_available_states", self._on_get_states)
        node.create_service(GetAvailableTransitions, "~/get_available_transitions", self._on_get_transitions)
        node.create_service(GetAvailableTransitions, "~/get_transition_graph", self._on_get_graph)

    @property
    def is_active(self) -> bool:
        """Whether questions are answered."""
        return self.state == State.PRIMARY_STATE_ACTIVE

    @property
    def refusal(self) -> str:
        """Why a question is rejected now, or an empty text."""
        if self.is_active:
            return ""
        name = self._node.get_fully_qualified_name()
        steps = {"unconfigured": ("configure", "activate"), "inactive": ("activate",)}.get(LABELS[self.state], ())
        how = "; run " + " and ".join(f"ros2 lifecycle set {name} {step}" for step in steps) if steps else ""
        return f"the node is {LABELS[self.state]} and answers only while it is active{how}"

    async def change(self, label: str) -> str:
        """Perform a transition; return why it failed, or an empty text."""
        edge = next((edge for edge in EDGES if (edge.label, edge.start) == (label, self.state)), None)
        if edge is None:
            known = [edge.label for edge in EDGES if edge.start == self.state]
            return f"there is no transition {label!r} from {LABELS[self.state]}; there are {known}"
        self._enter(edge, edge.via)
        try:
            fault = await getattr(self._actions, edge.label)()
        except Exception as error:  # a failed transition must not end the node
            fault = f"{type(error).__name__}: {error}"
        self._enter(edge, edge.start if fault else edge.goal)
        if fault:
            self._node.get_logger().error(f"cannot {label}: {fault}")
        return fault

    def _enter(self, edge: _Edge, state: int) -> None:
        event = TransitionEvent(
            timestamp=self._node.get_clock().now().nanoseconds,
            transition=Transition(id=edge.id, label=edge.label),
            start_state=_state(self.state),
            goal_state=_state(state),
        )
        self.state = state
        self._events.publish(event)
        self._node.get_logger().info(f"lifecycle: {LABELS[state]}")

    async def _on_change(self, request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
        asked = request.transition
        by_id = next((edge.label for edge in EDGES if edge.id == asked.id), "")
        fault = await self.change(asked.label or by_id)
        response.success = not fault
        return response

    def _on_get_state(self, _: GetState.Request, response: GetState.Response) -> GetState.Response:
        response.current_state = _state(self.state)
        return response

    def _on_get_states(self, _: Any, response: GetAvailableStates.Response) -> GetAvailableStates.Response:
        response.available_states = [_state(state) for state in LABELS]
        return response

    def _on_get_transitions(self, _: Any, response: GetAvailableTransitions.Response) -> Any:
        response.available_transitions = [_describe(edge) for edge in EDGES if edge.start == self.state]
        return response

    def _on_get_graph(self, _: Any, response: GetAvailableTransitions.Response) -> Any:
        response.available_transitions = [_describe(edge) for edge in EDGES]
        return response


def _state(number: int) -> State:
    return State(id=number, label=LABELS[number])


def _describe(edge: _Edge) -> TransitionDescription:
    return TransitionDescription(
        transition=Transition(id=edge.id, label=edge.label),
        start_state=_state(edge.start),
        goal_state=_state(edge.goal),
    )
