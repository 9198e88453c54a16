"""Flat vectors of a ring: layout, chunks, and what is refused from a member."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ravnest_p2p.core.errors import ChunkMismatchError, JobError, NonFiniteError, OurFault
from ravnest_p2p.training import averaging, benchmark


def tensors() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    params = {"w": torch.arange(6.0).view(2, 3).requires_grad_(), "h": torch.ones(2, dtype=torch.bfloat16)}
    return params, {"mean": torch.full((2,), 7.0), "count": torch.tensor(5)}


def test_gather_and_scatter_follow_the_names_and_leave_counts_alone() -> None:
    params, buffers = tensors()
    names = ["mean", "w", "count", "h"]
    flat = averaging.gather(params, buffers, names)
    assert flat.tolist() == [7, 7, 0, 1, 2, 3, 4, 5, 1, 1]
    assert flat.dtype == torch.float32
    weight, mean = params["w"], buffers["mean"]
    averaging.scatter(flat * 2.0, params, buffers, names)
    assert params["w"] is weight
    assert weight.requires_grad
    assert weight.tolist() == [[0, 2, 4], [6, 8, 10]]
    assert params["h"].tolist() == [2, 2]
    assert params["h"].dtype == torch.bfloat16
    assert buffers["mean"].tolist() == [14, 14]
    assert mean.tolist() == [7, 7]
    assert buffers["count"].item() == 5
    flat.zero_()
    assert buffers["mean"].tolist() == [14, 14]


def test_wrong_names_and_lengths_are_ours() -> None:
    params, buffers = tensors()
    with pytest.raises(OurFault):
        averaging.gather(params, buffers, ["absent"])
    with pytest.raises(OurFault):
        averaging.scatter(torch.zeros(7), params, buffers, ["w"])


def test_our_own_divergence_is_named() -> None:
    params, buffers = tensors()
    buffers["mean"][1] = float("nan")
    with pytest.raises(JobError, match="'mean'"):
        averaging.gather(params, buffers, ["w", "mean"])


def test_a_diverged_tensor_is_named_also_where_nobody_else_holds_the_segment() -> None:
    params = {"weight": torch.ones(3)}
    averaging.check_finite(params, {"count": torch.zeros((), dtype=torch.int64)}, ["weight", "count"])
    params["weight"][1] = torch.inf
    with pytest.raises(JobError, match="'weight'"):
        averaging.check_finite(params, {}, ["weight"])


def values(*numbers: float, chunks: int = 1) -> tuple[torch.Tensor, averaging.SegmentValues]:
    flat = torch.tensor(numbers, dtype=torch.float32)
    return flat, averaging.SegmentValues(flat, chunks)


def wire(*numbers: float) -> bytearray:
    return bytearray(np.array(numbers, dtype="<f4").tobytes())


def test_sums_grow_in_place_and_the_own_part_stays_until_the_mean_is_held() -> None:
    flat, its = values(0, 1, 2, 3, 4, chunks=3)
    assert its.part(1, 0.5).tolist() == [1, 1.5]
    assert its.part(1, 0).tolist() == [0, 0]
    arrived = its.received(1, wire(10, 20))
    total = its.add(1, 0.5, [arrived])
    assert total is arrived
    assert bytes(averaging.view(total)) == wire(11, 21.5)
    assert its.add(2, 1, [its.received(2, bytes(wire(6)))]).tolist() == [10]
    assert its.add(2, 1, [its.received(2, wire(6)), its.received(2, wire(7))]).tolist() == [17]
    assert its.add(2, 0.5, []).tolist() == [2]
    assert flat.tolist() == [0, 1, 2, 3, 4]
    assert np.shares_memory(its.hold(1, total), flat.numpy())
    assert flat.tolist() == [0, 1, 11, 21.5, 4]


def test_foreign_chunks_are_refused_and_change_nothing() -> None:
    flat, its = values(1.0, 3e38)
    for chunk, payload, dtype in [
        (0, bytes(4), "float32"),
        (0, bytes(12), "float32"),
        (0, bytes(8), "float64"),
        (0, b"", "float32"),
        (1, bytes(8), "float32"),
        (-1, bytes(8), "float32"),
    ]:
        with pytest.raises(ChunkMismatchError):
            its.received(chunk, payload, dtype)
    for bad in (float("nan"), float("inf"), -float("inf")):
        for take in (lambda got: its.hold(0, got), lambda got: its.add(0, 1.0, [got])):
            with pytest.raises(NonFiniteError, match="element 1"):
                take(its.received(0, wire(1, bad)))
    assert flat.tolist() == torch.tensor([1.0, 3e38]).tolist()


def test_a_sum_that_overflows_is_refused_and_a_large_one_is_not() -> None:
    _, its = values(3e38)
    with pytest.raises(NonFiniteError):
        its.add(0, 1.0, [its.received(0, wire(3e38))])
    assert its.add(0, 1.0, [its.received(0, wire(-3e38))]).tolist() == [0]
    assert its.add(0, 0.25, [its.received(0, wire(1e38))])[0] > 1.7e38, "its square overflows"


def test_a_segment_is_cut_evenly_for_all_ways() -> None:
    assert averaging.chunk_count(0, 3) == averaging.chunk_count(7, 3) == 3
    assert averaging.chunk_count(averaging.CHUNK_BYTES, 3) == 6
    assert averaging.chunk_count((averaging.CHUNKS * averaging.CHUNK_BYTES) // 4, 4) == averaging.CHUNKS
    assert averaging.chunk_count((averaging.CHUNKS * averaging.LARGE_CHUNK_BYTES) // 4, 4) == averaging.CHUNKS
    assert averaging.chunk_count((averaging.LARGE_CHUNK_BYTES << 10) // 4, 4) == 1024


def test_the_device_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--json", "--seconds", "0.01"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["kind"] in ("cpu", "cuda", "mps")
    assert measured["flops"] > 1e8
    assert measured["memory_bytes"] > 2**28
    assert benchmark.main(["--seconds", "0.01"]) == 0
    assert "GFLOP/s" in capsys.readouterr().out
