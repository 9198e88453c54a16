"""Properties of training's data: any cut, any bytes, any schedule."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ravnest_p2p.core.errors import BlobError, PackageError
from ravnest_p2p.core.rings import SegmentRound
from ravnest_p2p.core.types import BlobHash, FieldSpec, OptimizerSpec
from ravnest_p2p.testing.averaged_sim import exchange
from ravnest_p2p.training import (
    FieldReader,
    TensorSpec,
    averaging,
    learning_rate,
    load_pieces,
    write_shards,
)
from tests.unit.pieces import save_piece

torch.set_num_threads(1)

values = st.floats(-1e6, 1e6, width=32)


@given(st.lists(st.lists(values, min_size=7, max_size=7), min_size=1, max_size=5))
def test_chunks_that_are_summed_and_passed_on_give_every_member_the_same_mean(
    members: list[list[float]],
) -> None:
    """All members end bit-equal and near the mean."""
    count = len(members)
    flats = [torch.tensor(member) for member in members]
    rounds = [
        SegmentRound(rank, [1.0] * count, count, averaging.SegmentValues(flat, count))
        for rank, flat in enumerate(flats)
    ]
    exchange(rounds)
    assert all(torch.equal(flats[0], flat) for flat in flats)
    np.testing.assert_allclose(flats[0].numpy(), np.mean(members, axis=0), rtol=1e-4, atol=1.0)


@given(
    st.sampled_from(["constant", "linear", "cosine", "step"]),
    st.integers(0, 20),
    st.integers(1, 50),
    st.integers(0, 200),
)
def test_the_learning_rate_stays_within_its_bounds(
    schedule: str, warmup: int, length: int, version: int
) -> None:
    spec = OptimizerSpec(
        "sgd", 0.5, warmup_updates=warmup, schedule=schedule, schedule_updates=warmup + length
    )
    rate, next_rate = learning_rate(spec, version), learning_rate(spec, version + 1)
    assert 0.0 <= rate <= 0.5
    if version + 1 < warmup:
        assert next_rate > rate > 0.0
    elif version >= warmup:
        assert next_rate <= rate
    if schedule in ("linear", "cosine") and version >= warmup + length:
        assert rate == 0.0


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3), st.integers(0, 400), st.booleans())
def test_a_damaged_piece_is_refused_or_still_what_was_wanted(patch: bytes, place: int, shorten: bool) -> None:
    wanted = {"w": TensorSpec("float32", (4,))}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "piece"
        slots = {"w": {"momentum_buffer": torch.ones(4)}}
        save_piece(path, {"w": torch.ones(4)}, {"b": torch.zeros(2)}, slots, version=1, batches_done=2)
        whole = path.read_bytes()
        path.write_bytes(whole[:place] + patch + (b"" if shorten else whole[place + len(patch) :]))
        try:
            state = load_pieces([path], wanted, {})
        except (BlobError, PackageError):
            return
        assert state.params["w"].shape == (4,)
        assert state.params["w"].isfinite().all()
        assert state.optimizer_state.get("w", {}).keys() <= {"momentum_buffer"}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.data())
def test_rows_are_the_tensors_whatever_the_shards(samples: int, per_shard: int, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, samples - 1), max_size=20))
    tensor = torch.arange(samples * 2).view(samples, 2)
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(tensor, Path(folder), per_shard)
        assert sum(rows for _, rows in shards) == samples
        named = tuple((BlobHash(path.name), rows) for path, rows in shards)
        with FieldReader(
            FieldSpec("x", "input", "int64", (2,), named), [path for path, _ in shards]
        ) as reader:
            assert torch.equal(reader.rows(indices), tensor[indices])
