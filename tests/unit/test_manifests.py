"""Manifests of jobs: whole, canonical, and refused where no peer would take them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest

from ravnest_p2p.core.errors import RecordFormatError
from ravnest_p2p.core.planning.overlap import OVERLAPS
from ravnest_p2p.core.types import (
    BlobHash,
    FieldSpec,
    JobId,
    JobSpec,
    LayerCost,
    OptimizerSpec,
    WeightsPart,
)
from ravnest_p2p.network.records_codec import to_plain
from ravnest_p2p.network.records_manifest import job_id, manifest_bytes, parse_manifest

HASH, JOB = BlobHash("ab" * 32), JobId("12" * 32)


def a_spec(**changes: Any) -> JobSpec:
    field = FieldSpec("x", "input", "float32", (3,), ((HASH, 6), (HASH, 4)))
    layer, part = LayerCost(1.0, 2, 3, 4), WeightsPart(0, 4, HASH)
    spec = JobSpec(
        "job",
        HASH,
        (part,),
        (field,),
        10,
        (layer,) * 4,
        1,
        2,
        3,
        4,
        5,
        OptimizerSpec("adamw", 1e-3),
    )
    return replace(spec, **changes)


@pytest.mark.parametrize("mode", OVERLAPS)
def test_a_manifest_says_whether_rounds_overlap(mode: str) -> None:
    assert parse_manifest(manifest_bytes(a_spec(overlap=mode))).overlap == mode


@pytest.mark.parametrize(
    "other",
    [
        {"averaging": "gossip"},
        {"outer": "sgd"},
        {"averaging": "int8", "outer": "sgd", "outer_lr": 0.0},
        {"averaging": "int8", "outer": "sgd", "outer_lr": 1e300},
        {"averaging": "int8", "outer": "sgd", "outer_momentum": 1.0},
    ],
    ids=str,
)
def test_a_manifest_whose_averaging_is_none_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(RecordFormatError):
        manifest_bytes(a_spec(**other))


def test_a_manifest_of_a_stranger_is_asked_how_it_averages() -> None:
    sound = manifest_bytes(a_spec(averaging="int8", outer="sgd", outer_lr=0.5, outer_momentum=0.25))
    assert parse_manifest(sound).averaging == "int8"
    for old, new in (
        (b'"int8"', b'"gossip"'),
        (b'"int8"', b'"parameters"'),
        (b'"outer":"sgd"', b'"outer":"none"'),
        (b'"outer_lr":0.5', b'"outer_lr":-0.5'),
        (b'"outer_momentum":0.25', b'"outer_momentum":1.0'),
    ):
        assert old in sound
        with pytest.raises(RecordFormatError):
            parse_manifest(sound.replace(old, new))


@pytest.mark.parametrize("theirs", [b'"sometimes"', b'"ALWAYS"', b'""', b"true", b"1", b"null", b'["auto"]'])
def test_a_manifest_with_another_overlap_is_refused(theirs: bytes) -> None:
    data = manifest_bytes(a_spec())
    assert b'"overlap":"auto"' in data
    with pytest.raises(RecordFormatError, match="overlap"):
        parse_manifest(data.replace(b'"overlap":"auto"', b'"overlap":' + theirs))


def test_a_manifest_is_canonical() -> None:
    spec = a_spec(name="Größe")
    data = manifest_bytes(spec)
    assert parse_manifest(data) == spec
    assert job_id(data) == hashlib.sha256(data).hexdigest()
    assert manifest_bytes(parse_manifest(data)) == data
    whole = replace(spec, optimizer=replace(spec.optimizer, lr=1))
    assert manifest_bytes(whole) == manifest_bytes(replace(spec, optimizer=replace(spec.optimizer, lr=1.0)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b"{}",
        json.dumps(to_plain(a_spec())).encode(),
        manifest_bytes(a_spec()) + b" ",
        manifest_bytes(a_spec()).replace(b'"lr":0.001', b'"lr":NaN'),
        manifest_bytes(a_spec()).replace(b'"lr":0.001', b'"lr":1e-3'),
        manifest_bytes(a_spec()).replace(b'"seed":5', b'"seed":5,"seed":5'),
        manifest_bytes(a_spec()).replace(b'"seed":5', b'"seed":"5"'),
        manifest_bytes(a_spec()).replace(b'"seed":5', b'"seed":5,"zzz":1'),
        manifest_bytes(a_spec()).replace(b'"samples":10', b'"samples":11'),
        manifest_bytes(a_spec()).replace(b'"stages":0', b'"stages":9'),
        manifest_bytes(a_spec()).replace(b"ab", b"xy"),
        b" " * (9 * 1024 * 1024),
    ],
    ids=range(15),
)
def test_bad_manifests_are_refused(data: bytes) -> None:
    with pytest.raises(RecordFormatError):
        parse_manifest(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": ()},
        {"layers": (LayerCost(1.0, 2, 3, 4, 5),)},
        {"fields": ()},
        {"microbatch_size": 0},
        {"total_batches": 0},
        {"weights": ()},
        {"weights": (WeightsPart(0, 5, HASH),)},
        {"weights": (WeightsPart(1, 1, HASH),)},
        {"seed": -1},
        {"name": "a\nb"},
        {"program": "x"},
    ],
)
def test_a_manifest_that_no_peer_would_take_is_not_written(changes: dict[str, Any]) -> None:
    with pytest.raises(RecordFormatError):
        manifest_bytes(a_spec(**changes))
