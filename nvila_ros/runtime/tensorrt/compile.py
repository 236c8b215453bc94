"""Compile plans from a build's weights: export the graphs, compile part by part, record each plan when it is finished.

    weights -> plans/staging: graphs over one weights file -> a plan a part -> manifest

A finished plan is not built again. Files are named by their digests, the manifest is replaced atomically, and only then
are files removed that it no longer names: a build killed at any time loads as last recorded, and resumes from there.
The weights file is a second copy of the weights in the order and types of the graphs, which TensorRT's parser reads; it
exists only while plans are compiled. The safetensors stay: other backends and later versions of TensorRT start from
them, and the engine reads embeddings from them. The graphs stay too, some hundred kilobytes, since a plan is identified
by the digest of its graph.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from nvila_ros.errors import CheckpointError, ConfigError, NvilaError, size_text
from nvila_ros.export.forms import TRT_BASE, TRT_KV, GraphForm
from nvila_ros.export.parts import write_parts
from nvila_ros.files import write_atomic
from nvila_ros.models.build import Build, digest_file, open_build, rewrite_plans
from nvila_ros.models.spec import ModelSpec
from nvila_ros.runtime.contract import PREFILL_CHUNK
from nvila_ros.runtime.limits import EngineLimits, check_prompt_room
from nvila_ros.runtime.tensorrt import api
from nvila_ros.runtime.tensorrt.builder import BuildOptions, Built, Limits, build_plan, part_profiles
from nvila_ros.runtime.tensorrt.lint import find_kernel_faults
from nvila_ros.runtime.tensorrt.machine import Machine
from nvila_ros.runtime.tensorrt.plans import (
    FOLDER,
    PARTS,
    WEIGHTS_KEY,
    PlanRecord,
    check_plan,
    name_plan,
    read_records,
)
from nvila_ros.runtime.tensorrt.timings import read_timings, write_timings

STAGING = "staging"
DISK_FACTOR = 3  # times the weights: their second copy, and the plans
_log = logging.getLogger(__name__)

OnCompile = Callable[[str, str, float], None]
"""Called with the part, the phase of its build, and the finished share of the part, 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileJob:
    """The target of a compilation.

    Attributes:
        trt: the vendor's module.
        machine: on which the plans will run.
        form: of the decoder's graph.
        limits: of the engine.
        on_progress: called with the progress.
    """

    trt: Any
    machine: Machine
    form: GraphForm
    limits: Limits
    on_progress: OnCompile = lambda part, phase, share: None


def best_form(trt: Any) -> GraphForm:
    """Return the form of graph that is fastest on a version of TensorRT."""
    return TRT_KV if api.has_cache_in_place(trt) else TRT_BASE


def limits_of(spec: ModelSpec, limits: EngineLimits) -> Limits:
    """Return the limits of plans by a recipe; the cache is no longer than the model's positions.

    Raises:
        ConfigError: no image would fit into a prompt.
    """
    check_prompt_room(spec, limits.max_prompt_tokens)
    capacity = min(limits.max_prompt_tokens + limits.max_answer_tokens, spec.decoder.max_positions)
    return Limits(max_tiles=limits.batch_tiles, max_chunk=min(PREFILL_CHUNK, capacity - 1), capacity=capacity)


def compile_plans(folder: Path, job: CompileJob, recipe: Mapping[str, Any]) -> dict[str, PlanRecord]:
    """Compile the missing plans of a build, and return all plans for the job's machine, by part.

    Args:
        folder: a build.
        job: the target.
        recipe: of the limits; it is stored in the manifest.

    Raises:
        NvilaError: the build is damaged, the disk is short, or TensorRT refuses a graph.
    """
    build = open_build(folder)
    done = find_finished(build, job)
    if len(done) < len(PARTS):
        with _stage_graphs(build, job) as staging:
            for part in PARTS:
                graph = staging / job.form.file_of(part)
                if part in done and done[part].onnx_digest == digest_file(graph):
                    _log.info("%s: compiled already", part)
                    continue
                done[part] = _compile(build, job, part, graph)
                _record_plans(build, recipe, job, done)
    _remove_unnamed(build.path, _record_plans(build, recipe, job, done))
    return done


def find_finished(build: Build, job: CompileJob) -> dict[str, PlanRecord]:
    """Return the finished plans that load; a warning names the others."""
    done = {}
    for record in _known_records(build):
        if not _is_for(record, job):
            continue
        try:
            check_plan(build, record)
            done[record.part] = record
        except NvilaError as error:
            _log.warning("%s is compiled anew: %s", record.part, error)
    return done


@contextmanager
def _stage_graphs(build: Build, job: CompileJob) -> Iterator[Path]:
    """Export the graphs with one weights file into a temporary folder."""
    staging = build.path / FOLDER / STAGING
    shutil.rmtree(staging, ignore_errors=True)  # left by a killed build
    staging.mkdir(parents=True)
    try:
        needed = DISK_FACTOR * sum(path.stat().st_size for path in build.path.glob("*.safetensors"))
        free = shutil.disk_usage(staging).free
        if free < needed:
            raise ConfigError(f"plans need about {size_text(needed)}, {staging} has {size_text(free)}; make room")
        _log.info("exporting graphs for %s", job.machine)
        write_parts(build.spec, build.weights(), staging, [job.form])
        for part in PARTS:
            _mark(staging / job.form.file_of(part), build.weights_sha256, job.limits)
        yield staging
    finally:
        shutil.rmtree(staging)


def _mark(path: Path, digest: str, limits: Limits) -> None:
    """Write into a graph what else its plan depends on, so that the graph's digest covers all of it."""
    model = onnx.load(path, load_external_data=False)
    model.metadata_props.add(key=WEIGHTS_KEY, value=digest)
    model.metadata_props.add(key="limits", value=json.dumps(dataclasses.asdict(limits)))
    path.write_bytes(model.SerializeToString(deterministic=True))


def _compile(build: Build, job: CompileJob, part: str, graph: Path) -> PlanRecord:
    """Build one plan and write it, with its graph, into the build."""
    folder = build.path / FOLDER
    timings = read_timings(folder, job.machine)
    profiles = part_profiles(build.spec, part, job.form, job.limits)
    options = BuildOptions(target=job.machine.target, timings=timings)
    built = build_plan(job.trt, graph, profiles, job.limits.capacity, options, partial(job.on_progress, part))
    write_timings(folder, job.machine, built.timings)
    digest = digest_file(graph)["sha256"]
    kept, file = f"{FOLDER}/{part}.{digest[:12]}.onnx", name_plan(part, job.machine, digest)
    write_atomic(build.path / kept, graph.read_bytes())
    write_atomic(build.path / file, built.plan)
    return PlanRecord(
        part=part,
        file=file,
        digest=digest_file(build.path / file),
        onnx=kept,
        onnx_digest=digest_file(build.path / kept),
        machine=job.machine,
        form=job.form,
        limits=job.limits,
        build_s=round(built.build_s, 1),
        findings=_check_kernels(build, job, part, built),
    )


def _check_kernels(build: Build, job: CompileJob, part: str, built: Built) -> tuple[str, ...]:
    """Log and return in what the plan's kernels differ from the intended ones; log the builder's warnings."""
    findings = find_kernel_faults(part, build.spec, build.tensors, built.kernels, job.form)
    for text in findings:
        _log.warning("%s: %s", part, text)
    for text in built.warnings:
        _log.info("%s: TensorRT warns: %s", part, text)
    return tuple(findings)


def _known_records(build: Build) -> list[PlanRecord]:
    """Return the manifest's plans, or none where they cannot be read: then all are compiled again."""
    try:
        return read_records(build)
    except CheckpointError as error:
        _log.warning("%s", error)
        return []


def _record_plans(
    build: Build, recipe: Mapping[str, Any], job: CompileJob, done: Mapping[str, PlanRecord]
) -> list[PlanRecord]:
    """Store these plans in the manifest beside those of other machines; return all.

    Of one GPU and flavour only one version is kept, since plans of another version cannot run. Until all parts are
    done, the earlier plans stay and come first: they load if the build ends here.
    """
    mine, is_whole = _site(job.machine), len(done) == len(PARTS)
    others = [
        record
        for record in _known_records(build)
        if _site(record.machine) != mine or not (is_whole or _is_for(record, job))
    ]
    records = [*others, *(done[part] for part in PARTS if part in done)]
    rewrite_plans(build.path, recipe, [record.as_dict() for record in records])
    return records


def _is_for(record: PlanRecord, job: CompileJob) -> bool:
    return (record.machine, record.form, record.limits) == (job.machine, job.form, job.limits)


def _site(machine: Machine) -> Machine:
    return dataclasses.replace(machine, version="")


def _remove_unnamed(folder: Path, records: Sequence[PlanRecord]) -> None:
    """Remove plans and graphs that the manifest does not name."""
    named = {folder / name for record in records for name in (record.file, record.onnx)}
    for path in (folder / FOLDER).iterdir():
        if path not in named and path.suffix in (".plan", ".onnx", ".part"):
            path.unlink()
