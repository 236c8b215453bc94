"""`GET /metrics`: what Prometheus reads, by its own client library; names follow vLLM's, under `nvila_`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from nvila_ros.http.services import Services
from nvila_ros.serving.model_loader import ModelState
from nvila_ros.types import NS_PER_S, Answer, Piece

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
KINDS = ("interactive", "standing")


class Metrics:
    """Counts answers as they come, and reads the rest when it is asked.

    Args:
        services: of the process.
    """

    def __init__(self, services: Services) -> None:
        self.registry = CollectorRegistry()
        options: dict[str, Any] = {"registry": self.registry, "labelnames": ("kind",)}
        self._first = Histogram(
            "nvila_time_to_first_token_seconds", "From acceptance to the first token.", buckets=SECONDS, **options
        )
        self._total = Histogram(
            "nvila_e2e_request_latency_seconds", "From acceptance to the answer's end.", buckets=SECONDS, **options
        )
        self._age = Histogram(
            "nvila_answer_age_seconds", "Age of the newest frame when the answer was ready.", buckets=SECONDS, **options
        )
        self._prompt = Counter("nvila_prompt_tokens", "Tokens of prompts.", **options)
        self._reused = Counter("nvila_cached_prompt_tokens", "Tokens of prompts that a cache spared.", **options)
        self._answer = Counter("nvila_generation_tokens", "Tokens of answers.", **options)
        self._clock_ns = services.answering.clock_ns
        self.registry.register(_State(services))

    def on_answer(self, answer: Answer) -> None:
        """Count an answer; from any thread."""
        kind = KINDS[bool(answer.query.standing)]
        self._prompt.labels(kind).inc(answer.counts.num_prompt_tokens)
        self._reused.labels(kind).inc(answer.counts.num_reused_tokens)
        self._answer.labels(kind).inc(answer.counts.num_answer_tokens)
        self._total.labels(kind).observe(answer.timings.total_s)
        if answer.timings.ttft_s:
            self._first.labels(kind).observe(answer.timings.ttft_s)
        if answer.newest is not None:
            self._age.labels(kind).observe((self._clock_ns() - answer.newest.stamp_ns) / NS_PER_S)

    def on_piece(self, piece: Piece) -> None:
        """Pieces are counted with their answer."""

    def text(self) -> bytes:
        """Return all of them in Prometheus' text format."""
        return generate_latest(self.registry)


class _State:
    """Reads the counters that others keep."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        yield from self._queue()
        yield from self._frames()
        yield from self._model()
        standing = self._services.standing.counts()
        yield GaugeMetricFamily("nvila_standing_queries", "Standing queries.", standing["standing_queries"])
        evaluations = CounterMetricFamily("nvila_standing_evaluations", "Of standing queries.", labels=["outcome"])
        for name, count in standing.items():
            if name != "standing_queries":
                evaluations.add_metric([name.removeprefix("standing_")], count)
        yield evaluations

    def _queue(self) -> Iterator[Metric]:
        queue = self._services.answering.scheduler.state()
        yield GaugeMetricFamily("nvila_num_requests_waiting", "Queries that wait.", queue.num_waiting)
        yield GaugeMetricFamily("nvila_num_requests_running", "Queries that run.", queue.num_running)
        yield CounterMetricFamily("nvila_num_preemptions", "Standing queries that made room.", queue.num_preempted)
        ended = CounterMetricFamily("nvila_requests", "Queries by the way they ended.", labels=["finished_reason"])
        for reason, count in queue.num_ended.items():
            ended.add_metric([reason], count)
        yield ended

    def _frames(self) -> Iterator[Metric]:
        buffer = self._services.answering.buffer
        state = buffer.state()
        yield GaugeMetricFamily("nvila_frames_buffered", "Frames kept.", state.num_frames)
        yield GaugeMetricFamily("nvila_buffer_bytes", "Bytes of frames kept.", state.num_bytes)
        dropped = CounterMetricFamily("nvila_frames_dropped", "Frames that left the buffer.", labels=["reason"])
        for reason, count in state.num_dropped.items():
            dropped.add_metric([reason], count)
        yield dropped
        cameras = self._services.cameras()
        for name in ("received", "malformed", "lost"):
            counter = CounterMetricFamily(f"nvila_frames_{name}", f"Frames {name}.", labels=["camera"])
            for camera in cameras:
                counter.add_metric([camera.name], getattr(camera, name))
            yield counter
        age = GaugeMetricFamily("nvila_camera_age_seconds", "Age of the newest frame.", labels=["camera"])
        for camera in cameras:
            newest_ns = buffer.newest_ns([camera.name])
            if newest_ns is not None:
                age.add_metric([camera.name], (self._services.answering.clock_ns() - newest_ns) / NS_PER_S)
        yield age

    def _model(self) -> Iterator[Metric]:
        status = self._services.status()
        state = GaugeMetricFamily("nvila_model_state", "1 for the state that the model is in.", labels=["state"])
        for each in ModelState:
            state.add_metric([each.name.lower()], float(each is status.state))
        yield state
        yield GaugeMetricFamily("nvila_model_progress", "Of a build, 0 to 1.", status.progress)
        for name, count in self._services.counters().items():
            yield GaugeMetricFamily(f"nvila_model_{name}", f"The model's counter {name}.", count)
