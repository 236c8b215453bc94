"""Loads the worker's model, or builds it first, while the node is already up.

In: the node's parameters. Out: a model, and its progress. Where a recipe's build is missing, it is built in a process
of its own; until then the unquantized checkpoint may answer. Whether it may is a parameter of the node and not of the
recipe: a build is the same either way, but answers in another precision need the consent of whoever runs the robot.

An error before any model has answered ends the node. A failed build does not: a launch file that restarts the node
would build forever, so the node stays up, says why, and refuses queries or goes on with the plain checkpoint.
"""

from __future__ import annotations

import dataclasses
import enum
import shlex
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nvila_ros.builds.build_process import BuildProcess, Progress
from nvila_ros.builds.recipes import MEDIA, Recipe, changed_weights, read_recipe
from nvila_ros.config import NodeConfig
from nvila_ros.errors import BackendError, CheckpointError, ConfigError
from nvila_ros.hub.published import fetch_command
from nvila_ros.models.build import MANIFEST, is_build
from nvila_ros.models.checkpoint import read_object
from nvila_ros.models.spec import Overrides
from nvila_ros.paths import build_folder
from nvila_ros.remote.model import RemoteModel
from nvila_ros.remote.question import BACKEND as REMOTE
from nvila_ros.remote.settings import remote_settings
from nvila_ros.request import ModelInfo
from nvila_ros.runtime.loading import AUTO, backend_for, find_checkpoint, has_checkpoint
from nvila_ros.serving.pipeline import CacheLimits

FALLBACK_BACKEND = "onnxruntime"
COMPILED_BACKEND = "tensorrt"  # its plans are part of a build, and may be missing for this machine alone
CLOSE_S = 5.0


class ModelState(enum.IntEnum):
    """What the node's model is doing; the values are those of `msg/Status`."""

    UNKNOWN = 0
    LOADING = 1
    BUILDING = 2
    READY = 3
    FAILED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How far the model is, and who answers now.

    Attributes:
        progress: 0 to 1, of the build.
        part: what is being built.
        text: for people.
        model: who answers; empty if nobody does, as are `backend` and `precision`.
    """

    state: ModelState
    progress: float = 0.0
    part: str = ""
    text: str = ""
    model: str = ""
    backend: str = ""
    precision: str = ""

    @property
    def refusal(self) -> str:
        """Why a query is rejected now, or an empty text: while a model is loaded, queries wait for it."""
        if self.model or self.state not in (ModelState.BUILDING, ModelState.FAILED):
            return ""
        if self.state is ModelState.FAILED:
            return f"there is no model: {self.text}"
        return f"the model is being built, {self.progress:.0%} done; wait for READY on ~/status, or ask again later"


class LoadedModel(Protocol):
    """What the loader needs of a model: `pipeline.VisionLanguageModel`, or `remote.model.RemoteModel`."""

    info: ModelInfo

    def warm_up(self) -> None:
        """Run it once."""


@dataclass(frozen=True, slots=True)
class PlannedBuild:
    """A build that a node may need.

    Attributes:
        recipe: of the build.
        backend: that it runs on.
        folder: of the finished build.
        arguments: of `nvila build`.
        has_weights: only plans for this machine are missing, for which neither checkpoint nor media are needed.
    """

    recipe: Recipe
    backend: str
    folder: Path
    arguments: tuple[str, ...]
    has_weights: bool = False

    @property
    def command(self) -> str:
        """The command that makes it, behind the one that fetches what it is made of, where that is missing."""
        build = shlex.join(["nvila", "build", *self.arguments])
        is_needed = not self.has_weights and "--checkpoint" not in self.arguments
        fetch = fetch_command(self.recipe.model) if is_needed and not has_checkpoint(self.recipe.model) else ""
        return f"{fetch.partition(' (')[0]} && {build}" if fetch else build


class ModelLoader:
    """Loads and builds on a thread of its own.

    Args:
        config: the node's parameters.
        load: takes `model`, `backend`, `precision`, `threads` and `overrides` and returns the model.
        on_status: takes every change, on the thread of the loader.

    Attributes:
        error: ended the loading before there was a model.
    """

    def __init__(self, config: NodeConfig, load: Callable[..., Any], on_status: Callable[[Status], None]) -> None:
        self.error: Exception | None = None
        self._config, self._load, self._on_status = config, load, on_status
        self._status = Status(state=ModelState.LOADING)
        self._model: Any = None
        self._process: BuildProcess | None = None
        self._is_closed = self._has_built = False
        self._lock = threading.Lock()
        # Daemon: a runtime that loads cannot be interrupted, and the node must end when it is asked to.
        self._thread = threading.Thread(target=self._run, name="nvila_loader", daemon=True)

    @property
    def status(self) -> Status:
        """The model's state."""
        return self._status

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def take_model(self) -> Any:
        """Return a model that was not taken yet, or None."""
        with self._lock:
            model, self._model = self._model, None
        return model

    def close(self) -> bool:
        """End a build that runs; returns whether the thread has ended, which one that loads does not."""
        with self._lock:
            self._is_closed = True
            if self._process is not None:
                self._process.kill()
        self._thread.join(CLOSE_S if self._process is not None else 0)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._provide()
        except Exception as error:  # a runtime may raise anything, and none of it may pass unseen
            if self._is_closed:
                return
            if not self._has_built:
                self.error = error
            self._report(ModelState.FAILED, text=str(error) or type(error).__name__)

    def _provide(self) -> None:
        config = self._config
        if config.backend == REMOTE:
            self._put_remote()
            return
        if not config.recipe:
            self._put(config.model, config.backend, ModelState.READY)
            return
        planned = plan_build(config)
        try:
            check_build(planned)
            self._put(str(planned.folder), planned.backend, ModelState.READY)
        except (CheckpointError, BackendError) as error:
            if isinstance(error, BackendError):
                if planned.backend != COMPILED_BACKEND:
                    raise
                planned = plan_build(config, has_weights=True)
            if not config.build_missing_engines:
                raise ConfigError(f"{error}; run {planned.command}, or set build_missing_engines") from error
            self._build(planned, str(error))

    def _build(self, planned: PlannedBuild, why: str) -> None:
        config = self._config
        if not planned.has_weights:
            check_inputs(config, planned.recipe)
        if config.answer_while_building:
            self._put(config.checkpoint or planned.recipe.model, FALLBACK_BACKEND, ModelState.BUILDING)
        self._has_built = True
        self._report(ModelState.BUILDING, text=f"{why}; running {planned.command}")
        with self._lock:
            if self._is_closed:
                return
            self._process = BuildProcess(planned.arguments)
        for step in self._process:
            self._report(ModelState.BUILDING, progress=step.share, part=step.part, text=_describe(step))
        self._put(str(planned.folder), planned.backend, ModelState.READY)

    def _put_remote(self) -> None:
        """Offer the model of a server, with the one here to fall back on; the server may come later."""
        config = self._config
        settings = remote_settings(config)
        fallback = self._load_here(config.remote_fallback, AUTO) if config.remote_fallback else None
        self._report(ModelState.LOADING, text=f"asking {settings.url} which models it has")
        self._offer(RemoteModel(settings, fallback), ModelState.READY)

    def _put(self, model: str, backend: str, state: ModelState) -> None:
        """Load a model and offer it to the worker; what answers until then goes on.

        Of two models that overlap here, the build's process, which needed more, has ended.
        """
        self._offer(self._load_here(model, backend), state)

    def _load_here(self, model: str, backend: str) -> Any:
        config = self._config
        self._report(ModelState.LOADING, progress=self._status.progress, text=f"loading {model} on {backend}")
        overrides = Overrides(
            video_mode=config.video_mode,
            max_tiles=config.max_tiles,
            pixel_dtype=config.pixel_dtype,
            change_threshold=config.change_threshold,
            key_every=config.key_every,
        )
        limits = CacheLimits(
            frame_bytes=config.frame_cache_bytes,
            num_prefixes=config.prefix_caches,
            repeat_threshold=config.repeat_threshold,
        )
        return self._load(
            model,
            backend=backend,
            precision=AUTO if config.recipe else config.precision,
            threads=config.threads,
            overrides=overrides,
            limits=limits,
        )

    def _offer(self, loaded: LoadedModel, state: ModelState) -> None:
        if self._config.warmup:
            loaded.warm_up()
        with self._lock:
            self._model = loaded
        self._report(state, progress=float(state is ModelState.READY), **dataclasses.asdict(loaded.info))

    def _report(self, state: ModelState, **changes: Any) -> None:
        """Report a new state; who answers stays unless it is among the changes."""
        fresh: dict[str, Any] = {"progress": 0.0, "part": "", "text": ""}
        self._status = dataclasses.replace(self._status, state=state, **fresh | changes)
        if not self._is_closed:
            self._on_status(self._status)


def plan_build(config: NodeConfig, *, has_weights: bool = False) -> PlannedBuild:
    """Return the build that a node's parameters ask for; what they must name and do not is FOLDER in its arguments.

    Raises:
        ConfigError: there is no such recipe, or it breaks a rule.
    """
    recipe = read_recipe(config.recipe)
    arguments = [config.recipe]
    if config.checkpoint:
        arguments += ["--checkpoint", config.checkpoint]
    if not has_weights and (config.media or not recipe.calibration.media):
        arguments += ["--media", config.media or "FOLDER"]
    backend = backend_for(recipe.device) if config.backend == AUTO else config.backend
    return PlannedBuild(recipe, backend, build_folder(recipe.name), tuple(arguments), has_weights)


def check_build(planned: PlannedBuild) -> None:
    """Make sure that there is a build of this recipe; whether its files are whole shows when it is loaded.

    Its calibration media are not compared: they may have been on another machine.

    Raises:
        CheckpointError: there is none, or it was made by other values.
    """
    folder = planned.folder
    if not is_build(folder):
        raise CheckpointError(f"recipe {planned.recipe.name} has no finished build in {folder}")
    built = read_object(folder / MANIFEST).get("recipe")
    if not isinstance(built, dict):
        raise CheckpointError(f"{folder / MANIFEST} does not name its recipe")
    changed = [name for name in changed_weights(built, planned.recipe) if name != MEDIA]
    if changed:
        raise CheckpointError(f"{folder} was built before the recipe changed in {', '.join(changed)}")


def check_inputs(config: NodeConfig, recipe: Recipe) -> None:
    """Make sure that all that weights are made of is named, and the checkpoint there.

    Raises:
        CheckpointError: there is no such checkpoint.
        ConfigError: checkpoint or media are not named.
    """
    if not config.media and not recipe.calibration.media:
        raise ConfigError(f"recipe {recipe.name} is calibrated on what the robot sees; name a folder by media")
    find_checkpoint(config.checkpoint or recipe.model)


def _describe(step: Progress) -> str:
    return f"{step.part}: {step.done} of {step.total}"
