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
    averaging.scatter(averaging.weighted(flat, 2.0), params, buffers, names)
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


def test_chunks_share_memory() -> None:
    flat = torch.arange(5.0)
    chunks = averaging.cut(flat, 3)
    assert [chunk.tolist() for chunk in chunks] == [[0, 1], [2, 3], [4]]
    np.frombuffer(averaging.view(chunks[1]), dtype="<f4")[:] = 9
    averaging.accumulate(chunks[0], np.array([1, 2], dtype="<f4").tobytes())
    averaging.replace(chunks[2], bytearray(4))
    assert flat.tolist() == [1, 3, 9, 9, 0]


@pytest.mark.parametrize("take", [averaging.accumulate, averaging.replace])
def test_foreign_chunks_are_refused_and_change_nothing(take) -> None:
    chunk = torch.tensor([1.0, 3e38])
    for payload, dtype in [
        (bytes(4), "float32"),
        (bytes(12), "float32"),
        (bytes(8), "float64"),
        (b"", "float32"),
    ]:
        with pytest.raises(ChunkMismatchError):
            take(chunk, payload, dtype)
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(NonFiniteError, match="element 1"):
            take(chunk, np.array([1, bad], dtype="<f4").tobytes())
    assert chunk.tolist() == torch.tensor([1.0, 3e38]).tolist()


def test_a_sum_that_overflows_is_refused() -> None:
    chunk = torch.tensor([3e38])
    with pytest.raises(NonFiniteError):
        averaging.accumulate(chunk, np.array([3e38], dtype="<f4").tobytes())
    assert chunk.isfinite().all()


def test_the_device_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--json", "--seconds", "0.01"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["kind"] in ("cpu", "cuda", "mps")
    assert measured["flops"] > 1e8
    assert measured["memory_bytes"] > 2**28
    assert benchmark.main(["--seconds", "0.01"]) == 0
    assert "GFLOP/s" in capsys.readouterr().out
