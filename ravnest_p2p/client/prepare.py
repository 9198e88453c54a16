"""A job request turned into what travels: a manifest and content-addressed blobs, in a folder on this
computer.

Nothing of it is sent before all of it holds: a user's mistake is said here, with the way to mend it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from ravnest_p2p.client.blobs import sha256_of
from ravnest_p2p.client.request import JobRequest
from ravnest_p2p.core.averaging import check_averaging, chosen
from ravnest_p2p.core.compression import COMPRESSIONS
from ravnest_p2p.core.errors import ConfigError, RecordFormatError
from ravnest_p2p.core.optimizers import PRECISIONS, check_momentum, check_optimizer
from ravnest_p2p.core.pipeline.batch_advice import half_of, pipeline_advice
from ravnest_p2p.core.pipeline.correction import CORRECTIONS
from ravnest_p2p.core.pipeline.nonfinite import NONFINITE
from ravnest_p2p.core.pipeline.window import STALENESS_MODES
from ravnest_p2p.core.planning.overlap import OVERLAPS
from ravnest_p2p.core.types import BlobHash, FieldSpec, JobId, JobSpec, OptimizerSpec, WeightsPart
from ravnest_p2p.model.capture import capture
from ravnest_p2p.model.matrices import hidden_matrices
from ravnest_p2p.model.mixed import check_mixed
from ravnest_p2p.model.package import Package
from ravnest_p2p.model.program import Program
from ravnest_p2p.model.requirements import Terms, requirements
from ravnest_p2p.network.records_manifest import job_id, manifest_bytes
from ravnest_p2p.training.data import write_shards

_SHARD_BYTES = 4 * 1024 * 1024
Say = Callable[[str], None]
"""Called with a line for people before each step that may take long."""


@dataclass(frozen=True)
class Prepared:
    """A job ready to be handed in.

    Attributes:
        blobs: file of each blob, in the order in which they are uploaded; the manifest is the last.
        advice: what may be better about the request, in words.
    """

    job: JobId
    spec: JobSpec
    manifest_bytes: int
    blobs: dict[BlobHash, Path]
    advice: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.blobs.values())


def prepare(request: JobRequest, folder: Path, say: Say) -> tuple[Prepared, Program]:
    """Capture the model, cut the data into shards, and write the manifest.

    Args:
        folder: empty; takes all blobs, and has to stay until they are uploaded.
    Returns:
        The job, and the captured program.
    Raises:
        ConfigError: data or settings that do not fit together.
        CaptureError: the model cannot be captured faithfully.
    """
    columns = columns_of(request, say)
    samples = len(columns[0])
    inputs, labels = columns[: len(columns) - request.labels], columns[len(columns) - request.labels :]
    batches = _total_batches(request, samples)
    optimizer = _optimizer(request, batches)
    checkpoint = request.checkpoint_word
    size, m = request.microbatch_size, request.microbatches_per_update
    package = _package(request, [c[:size] for c in inputs], [c[:size] for c in labels], say)
    if optimizer.name == "muon" and not hidden_matrices(package.program):
        raise ConfigError("the model has no hidden matrix for Muon to move; use AdamW")
    if request.precision == "bf16":
        check_mixed(package, {name: column[:size] for name, _, column in _named(inputs, labels)})
    program, weights = package.write(folder)
    blobs = {sha256_of(program): program}
    parts = []
    for file in weights:
        blob = sha256_of(file.path)
        blobs[blob] = file.path
        parts += [WeightsPart(lo, hi, blob) for lo, hi in file.layers]
    say("writing the data")
    fields = []
    for name, role, column in _named(inputs, labels):
        shards = _shards(column, folder / name)
        blobs |= {blob: path for blob, path, _ in shards}
        dtype = str(column.dtype).removeprefix("torch.")
        cuts = tuple((blob, rows) for blob, _, rows in shards)
        fields.append(FieldSpec(name, role, dtype, tuple(column.shape[1:]), cuts))
    spec = JobSpec(
        name=request.name or type(request.model).__name__,
        program=sha256_of(program),
        weights=tuple(parts),
        fields=tuple(fields),
        samples=samples,
        layers=requirements(package, Terms(optimizer, request.precision)).layers,
        microbatch_size=size,
        microbatches_per_update=m,
        updates_per_round=request.updates_per_round,
        total_batches=batches,
        seed=request.seed,
        optimizer=optimizer,
        stages=request.stages,
        clusters=request.clusters,
        staleness_bound=(half_of(m) if request.staleness_bound is None else request.staleness_bound),
        staleness=request.staleness,
        precision=request.precision,
        checkpoint=checkpoint,
        compression=request.compression,
        staleness_correction=request.staleness_correction,
        nonfinite=request.nonfinite,
        overlap=request.overlap,
        kappa=request.kappa,
        averaging=chosen(request.averaging, request.kappa, request.outer),
        means=request.means,
        outer=request.outer,
        outer_lr=float(request.outer_lr),
        outer_momentum=float(request.outer_momentum),
        average_momentum=request.average_momentum,
    )
    try:
        manifest = manifest_bytes(spec)
    except RecordFormatError as error:
        raise ConfigError(f"these settings make no job: {error}") from None
    path = folder / "manifest.json"
    path.write_bytes(manifest)
    job = job_id(manifest)
    blobs[BlobHash(job)] = path
    advice = pipeline_advice(m, request.staleness_bound, request.stages)
    for line in advice:
        say(f"note: {line}")
    return Prepared(job, spec, len(manifest), blobs, tuple(advice)), package.program


def _package(request: JobRequest, inputs: list[Tensor], labels: list[Tensor], say: Say) -> Package:
    """The model as data, captured with one micro-batch; what is a package already is checked against it."""
    if not isinstance(request.model, Package):
        say("capturing the model")
        model, labelled = request.model, tuple(labels)
        return capture(model, tuple(inputs), loss=request.loss, example_labels=labelled, evaluation=False)
    wanted = {leaf.name: (leaf.dtype, leaf.shape) for leaf in request.model.program.inputs}
    named = _named(inputs, labels)
    found = {name: (str(c.dtype).removeprefix("torch."), tuple(c.shape)) for name, _, c in named}
    if wanted != found:
        raise ConfigError(
            f"the package takes micro-batches of {_listed(wanted)}; this data, cut by microbatch_size, gives "
            f"{_listed(found)}"
        )
    return request.model


def _listed(fields: dict[str, tuple[str, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {dtype} {list(shape)}" for name, (dtype, shape) in fields.items())


def columns_of(request: JobRequest, say: Say) -> list[Tensor]:
    """The request's data as tensors of the dtypes that are trained with, labels last.

    Raises:
        ConfigError: the data are no columns of equal length.
    """
    data: Any = request.data
    if isinstance(data, Dataset) or not isinstance(data, (tuple, list)):
        data = _materialised(data, say)
    if request.labels < 0 or len(data) <= request.labels:
        raise ConfigError(f"data has {len(data)} columns; it needs inputs and {request.labels} of labels")
    columns = [_column(array, label=i >= len(data) - request.labels) for i, array in enumerate(data)]
    if len({len(column) for column in columns}) != 1 or not len(columns[0]):
        raise ConfigError(
            f"data columns must have the same length, not {[len(column) for column in columns]}"
        )
    return columns


def _materialised(data: Any, say: Say) -> tuple[Any, ...]:
    try:
        total = len(data)
    except TypeError:
        raise ConfigError("data must be a tuple of tensors or arrays, or a Dataset with a length") from None
    rows = []
    for index in range(total):
        if index % 10_000 == 0:
            say(f"reading the data: {index} of {total}")
        rows.append(data[index])
    batch = default_collate(rows) if rows else ()
    if not isinstance(batch, (tuple, list)):
        raise ConfigError("each item of the Dataset must be a tuple: inputs first, labels last")
    return tuple(batch)


def _column(array: Any, *, label: bool) -> Tensor:
    if isinstance(array, np.ndarray):
        array = torch.from_numpy(np.ascontiguousarray(array))
    if not isinstance(array, Tensor) or array.ndim == 0:
        raise ConfigError(f"a data column must be a tensor or a numpy array, not {type(array).__name__}")
    column: Tensor = array.detach().cpu().contiguous()
    if column.dtype == torch.float64:
        return column.float()
    if label and column.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        return column.long()
    return column


def _total_batches(request: JobRequest, samples: int) -> int:
    numbers = {
        "passes": request.passes,
        "microbatch_size": request.microbatch_size,
        "microbatches_per_update": request.microbatches_per_update,
        "updates_per_round": request.updates_per_round,
    }
    for name, value in numbers.items():
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}")
    for name, value in {"stages": request.stages, "clusters": request.clusters, "seed": request.seed}.items():
        if value < 0:
            raise ConfigError(f"{name} must not be negative, but is {value}")
    if request.precision not in PRECISIONS:
        raise ConfigError(f"precision must be {' or '.join(PRECISIONS)}, not {request.precision!r}")
    if request.compression not in COMPRESSIONS:
        names = ", ".join(COMPRESSIONS)
        raise ConfigError(f"compression must be one of {names}, not {request.compression!r:.40}")
    if request.staleness not in STALENESS_MODES:
        raise ConfigError(
            f"staleness must be one of {', '.join(STALENESS_MODES)}, not {request.staleness!r:.40}; "
            "the bound is staleness_bound"
        )
    if request.staleness_correction not in CORRECTIONS:
        raise ConfigError(
            f"staleness_correction must be one of {', '.join(CORRECTIONS)}, "
            f"not {request.staleness_correction!r:.40}"
        )
    if request.nonfinite not in NONFINITE:
        raise ConfigError(f"nonfinite must be {' or '.join(NONFINITE)}, not {request.nonfinite!r:.40}")
    outer = (request.outer, request.outer_lr, request.outer_momentum)
    averaging = chosen(request.averaging, request.kappa, request.outer)
    check_averaging(averaging, *outer, request.kappa, request.means, request.average_momentum)
    if request.overlap not in OVERLAPS:
        raise ConfigError(f"overlap must be one of {', '.join(OVERLAPS)}, not {request.overlap!r:.40}")
    if request.staleness_bound is not None and request.staleness_bound < 0:
        raise ConfigError(f"staleness_bound must not be negative, but is {request.staleness_bound}")
    if samples < request.microbatch_size:
        raise ConfigError(f"{samples} samples do not fill one micro-batch of {request.microbatch_size}")
    batch = request.microbatch_size * request.microbatches_per_update
    batches = request.passes * samples // batch
    if batches < 1:
        raise ConfigError(f"{request.passes} passes over {samples} samples do not fill one batch of {batch}")
    return batches


def _optimizer(request: JobRequest, batches: int) -> OptimizerSpec:
    """The optimizer with its schedule's end filled in, after a try whether peers will take it."""
    spec = request.optimizer
    if spec.schedule in ("linear", "cosine") and not spec.schedule_updates:
        spec = replace(spec, schedule_updates=math.ceil(batches / max(1, request.clusters)))
    check_optimizer(spec)
    check_momentum(spec, request.average_momentum)
    return spec


def _named(inputs: list[Tensor], labels: list[Tensor]) -> list[tuple[str, str, Tensor]]:
    named = [(f"x{i}", "input", column) for i, column in enumerate(inputs)]
    return named + [(f"y{i}", "label", column) for i, column in enumerate(labels)]


def _shards(column: Tensor, folder: Path) -> list[tuple[BlobHash, Path, int]]:
    row_bytes = max(1, column[0].numel() * column.element_size())
    shards = write_shards(column, folder, max(1, _SHARD_BYTES // row_bytes))
    return [(sha256_of(path), path, rows) for path, rows in shards]
