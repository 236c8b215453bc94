"""The plans that a build's manifest lists, and whether one may be loaded here.

A plan is code that the GPU runs, made for one version of TensorRT and one kind of GPU; TensorRT itself detects some
mismatches and crashes on others. So everything that a plan depends on is in the manifest and is checked first: machine,
size and digest, the graph that it was compiled from and, by that graph, the weights.
"""

from __future__ import annotations

import dataclasses
import mmap
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvila_ros.errors import BackendError, CheckpointError
from nvila_ros.export.forms import TRT_BASE, TRT_KV, GraphForm
from nvila_ros.models.build import Build, check_file
from nvila_ros.models.spec import ModelSpec
from nvila_ros.runtime.tensorrt.builder import Limits, load_graph, part_profiles
from nvila_ros.runtime.tensorrt.machine import Machine

PARTS = ("vision", "projector", "decoder")
FOLDER = "plans"
WEIGHTS_KEY = "weights_sha256"
"""Metadata key of a graph for the digest of its weights, so that the graph's digest covers them."""
KEYS = {"digest": "seal", "onnx_digest": "onnx_seal"}
"""Fields of a record by their keys in the manifest, which are those of earlier versions."""
FORMS = {form.decoder: form for form in (TRT_BASE, TRT_KV)}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRecord:
    """The manifest's entry of one plan.

    Attributes:
        part: one of `PARTS`.
        file: of the plan, in the build's folder.
        digest: size and SHA-256 of that file; `seal` in the manifest.
        onnx: file of the graph that it was compiled from; its weights are those of the build.
        onnx_digest: size and SHA-256 of that; `onnx_seal` in the manifest.
        form: of the decoder's graph.
        build_s: how long parsing and compiling took.
        findings: differences of its kernels from those that the graph intends.
    """

    part: str
    file: str
    digest: dict[str, Any]
    onnx: str
    onnx_digest: dict[str, Any]
    machine: Machine
    form: GraphForm
    limits: Limits
    build_s: float
    findings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for the manifest."""
        values = {**dataclasses.asdict(self), "form": self.form.decoder}
        return values | {key: values.pop(name) for name, key in KEYS.items()}


def read_records(build: Build) -> list[PlanRecord]:
    """Return the plans in a build's manifest.

    Raises:
        CheckpointError: an entry is not one that `nvila build` writes.
    """
    try:
        return [_read_record(plan) for plan in build.plans]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the manifest of {build.path} does not describe its plans ({error!r}); {rebuild(build.path)}"
        ) from error


def _read_record(plan: Any) -> PlanRecord:
    values = {
        **{key: value for key, value in plan.items() if key not in KEYS.values()},
        **{name: dict(plan[key]) for name, key in KEYS.items()},
        "machine": Machine(**plan["machine"]),
        "form": FORMS[plan["form"]],
        "limits": Limits(**plan["limits"]),
        "findings": tuple(plan["findings"]),
    }
    return PlanRecord(**values)


def choose_plans(build: Build, machine: Machine) -> dict[str, PlanRecord]:
    """Return the plan of each part for this machine, after checking all its files.

    Raises:
        BackendError: there is none, or it is for another graph or other weights.
        CheckpointError: a file is missing, truncated or changed.
    """
    records = read_records(build)
    chosen = {part: _choose(build, [r for r in records if r.part == part], part, machine) for part in PARTS}
    if len({(record.limits, record.form) for record in chosen.values()}) > 1:
        raise BackendError(f"plans of {build.path} are for several limits or forms; {rebuild(build.path)}")
    for record in chosen.values():
        check_plan(build, record)
    return chosen


def _choose(build: Build, records: Sequence[PlanRecord], part: str, machine: Machine) -> PlanRecord:
    for record in records:
        if record.machine == machine:
            return record
    found = " and ".join(str(record.machine) for record in records) or "none"
    raise BackendError(f"{build.path} has plans of {part} for {found}, this is {machine}; {rebuild(build.path)}")


def check_plan(build: Build, record: PlanRecord) -> None:
    """Check the files of a plan against the manifest, and its graph against the build and the engine.

    Raises:
        BackendError: it is for another graph, for other weights or of an engine with other inputs.
        CheckpointError: a file is missing, truncated or changed.
    """
    how = rebuild(build.path)
    check_file(build.path, record.file, record.digest, how)
    check_file(build.path, record.onnx, record.onnx_digest, how)
    graph = load_graph(build.path / record.onnx, how)
    if record.onnx_digest["sha256"][:12] not in record.file:
        raise BackendError(f"{record.file} is the plan of another graph than {record.onnx}; {how}")
    if {entry.key: entry.value for entry in graph.metadata_props}.get(WEIGHTS_KEY) != build.weights_sha256:
        raise BackendError(f"{record.file} was compiled from other weights than those of {build.path}; {how}")
    wanted, found = _inputs(build.spec, record), {value.name for value in graph.graph.input}
    if wanted != found:
        raise BackendError(f"{record.file} differs from this engine in its inputs {sorted(wanted ^ found)}; {how}")


def _inputs(spec: ModelSpec, record: PlanRecord) -> set[str]:
    form = record.form.of(record.part)
    names = set(part_profiles(spec, record.part, form, record.limits)[0])
    if form.decoder == "in_place":
        names |= {"start", *(f"past_{key}_{i}" for key in "kv" for i in range(spec.decoder.num_layers))}
    return names


def map_plan(folder: Path, record: PlanRecord) -> mmap.mmap:
    """Return a plan's bytes, mapped from disk."""
    with (folder / record.file).open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def name_plan(part: str, machine: Machine, onnx_sha256: str) -> str:
    """Return the file of a plan in the build's folder."""
    return f"{FOLDER}/{part}.{machine.label}.{onnx_sha256[:12]}.plan"


def rebuild(folder: Path) -> str:
    """Return the command that repairs a build, for messages."""
    return f"compile it on this machine with: nvila build {shlex.quote(str(folder))}"
