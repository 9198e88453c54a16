"""A job's manifest: `JobSpec` as the one canonical JSON text whose SHA-256 is the job's id.

Problem: the id must stand for exactly one spec, on every peer, and the text comes from a stranger.
Solution: keys sorted, no spaces, floats always written as floats; a text that is not byte for byte what
we would write for the spec in it is refused, as is every number or list out of bounds.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ravnest_p2p.core.averaging import check_averaging
from ravnest_p2p.core.compression import COMPRESSIONS
from ravnest_p2p.core.errors import ConfigError, RecordFormatError
from ravnest_p2p.core.optimizers import PRECISIONS, check_momentum, check_optimizer
from ravnest_p2p.core.pipeline.correction import CORRECTIONS
from ravnest_p2p.core.pipeline.nonfinite import NONFINITE
from ravnest_p2p.core.pipeline.window import STALENESS_MODES
from ravnest_p2p.core.planning.overlap import OVERLAPS
from ravnest_p2p.core.planning.recompute import CHECKPOINTS
from ravnest_p2p.core.types import JobId, JobSpec
from ravnest_p2p.network.records_codec import from_plain, to_plain

MAX_MANIFEST_BYTES = 8 * 1024 * 1024
_MAX_LAYERS = 16384
_MAX_FIELDS = 256
_MAX_RANK = 16


def manifest_bytes(spec: JobSpec) -> bytes:
    """Canonical JSON of the spec.

    Raises:
        RecordFormatError: the spec breaks a bound that every peer checks.
    """
    data = _dump(_checked(from_plain(JobSpec, to_plain(spec))))
    if len(data) > MAX_MANIFEST_BYTES:
        raise RecordFormatError(f"manifest of {len(data)} bytes; the limit is {MAX_MANIFEST_BYTES}")
    return data


def parse_manifest(data: bytes) -> JobSpec:
    """The spec in a manifest that anybody may have written.

    Raises:
        RecordFormatError: too large, not canonical, or out of bounds.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise RecordFormatError(f"manifest of {len(data)} bytes; the limit is {MAX_MANIFEST_BYTES}")
    try:
        plain = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RecordFormatError(f"manifest is not JSON: {str(error)[:80]}") from error
    spec = _checked(from_plain(JobSpec, plain))
    if _dump(spec) != data:
        raise RecordFormatError("manifest is not in canonical form")
    return spec


def job_id(data: bytes) -> JobId:
    """Id of the job with this manifest."""
    return JobId(hashlib.sha256(data).hexdigest())


def _dump(spec: JobSpec) -> bytes:
    text = json.dumps(to_plain(spec), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _checked(spec: JobSpec) -> JobSpec:
    _need(1 <= len(spec.layers) <= _MAX_LAYERS, f"from 1 to {_MAX_LAYERS} layers")
    _need(1 <= len(spec.fields) <= _MAX_FIELDS, f"from 1 to {_MAX_FIELDS} data fields")
    _need(1 <= len(spec.weights) <= 65536, "at least one blob of weights")
    _need(all(part.lo < part.hi <= len(spec.layers) for part in spec.weights), "weights of layers that exist")
    _need(all(field.role in ("input", "label") for field in spec.fields), 'field roles "input" or "label"')
    _need(all(len(field.shape) <= _MAX_RANK for field in spec.fields), f"shapes of rank at most {_MAX_RANK}")
    _need(
        all(sum(rows for _, rows in field.shards) == spec.samples for field in spec.fields),
        "data shards whose rows add up to the number of samples",
    )
    _need(
        min(spec.samples, spec.microbatch_size, spec.microbatches_per_update) >= 1, "samples and a batch size"
    )
    _need(min(spec.updates_per_round, spec.total_batches) >= 1, "at least one update a round and one batch")
    _need(all(layer.flops >= 0 for layer in spec.layers), "layer costs that are not negative")
    _need(all(layer.carried_bytes <= layer.out_bytes for layer in spec.layers), "to carry what is sent only")
    _need(
        all(layer.remade_bytes <= layer.activation_bytes for layer in spec.layers), "to remake less than all"
    )
    _need(spec.stages <= len(spec.layers), "no more stages than layers")
    _need(spec.precision in PRECISIONS, f"a precision of {' or '.join(PRECISIONS)}")
    _need(spec.checkpoint in CHECKPOINTS, f"a checkpoint of {', '.join(CHECKPOINTS)}")
    _need(spec.compression in COMPRESSIONS, f"a compression of {', '.join(COMPRESSIONS)}")
    _need(spec.staleness in STALENESS_MODES, f"a staleness of {', '.join(STALENESS_MODES)}")
    _need(spec.staleness_correction in CORRECTIONS, f"a staleness_correction of {', '.join(CORRECTIONS)}")
    _need(spec.nonfinite in NONFINITE, f"a nonfinite of {', '.join(NONFINITE)}")
    _need(spec.overlap in OVERLAPS, f"an overlap of {', '.join(OVERLAPS)}")
    try:
        check_optimizer(spec.optimizer)
        check_averaging(
            spec.averaging,
            spec.outer,
            spec.outer_lr,
            spec.outer_momentum,
            spec.kappa,
            spec.means,
            spec.average_momentum,
        )
        check_momentum(spec.optimizer, spec.average_momentum)
    except ConfigError as error:
        raise RecordFormatError(f"the manifest: {error}") from None
    return spec


def _need(holds: bool, what: str) -> None:
    if not holds:
        raise RecordFormatError(f"a manifest must have {what}")
