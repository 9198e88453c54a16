"""A mean that is taken in after training went on: what the piece holds, what the weights become."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ravnest_p2p.core.errors import OurFault
from ravnest_p2p.training.late_mean import settle, take_in
from ravnest_p2p.training.means import Parameters
from ravnest_p2p.training.snapshot import draft_piece
from ravnest_p2p.training.tensorfile import TensorDraft

NAMES = ["count", "half", "mean", "w"]


def stage() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    params = {"w": torch.randn(3, 4), "half": torch.randn(5).to(torch.bfloat16), "alone": torch.randn(2)}
    return params, {"mean": torch.rand(3), "count": torch.tensor(7)}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1 << 20), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_the_piece_has_the_mean_to_the_bit_and_the_weights_what_was_learned(
    tmp_path_factory: pytest.TempPathFactory, seed: int, scale: float
) -> None:
    torch.manual_seed(seed)
    path = tmp_path_factory.mktemp("late") / "piece"
    params, buffers = stage()
    snapshot = {name: tensor.clone() for name, tensor in params.items()}
    means = Parameters(params, buffers, NAMES, 2, 1)
    means.begin(params, buffers)
    flat = means.mean
    state = {"w": {"exp_avg": torch.randn(3, 4)}}
    with draft_piece(path, params, buffers, state, version=3, batches_done=6) as draft:
        learned = {name: torch.randn_like(tensor) for name, tensor in params.items()}
        for name, tensor in params.items():
            tensor += learned[name]
        buffers["mean"] *= 2
        mean = flat + scale * torch.randn_like(flat)
        flat.copy_(mean)
        settle(means, params, buffers, draft)
        draft.finish()
    moved = {name: tensor.clone() for name, tensor in params.items()}
    take_in(means, params, buffers)

    half, statistics, w = mean[:5], mean[5:8], mean[8:].view(3, 4)
    saved = load_file(path)
    assert torch.equal(saved["param/w"], w)
    assert torch.equal(saved["param/half"], half.to(torch.bfloat16))
    assert torch.equal(saved["param/alone"], snapshot["alone"])
    assert torch.equal(saved["buffer/mean"], statistics)
    assert torch.equal(saved["optim/w/exp_avg"], state["w"]["exp_avg"])
    assert torch.equal(params["w"], moved["w"] + (w - snapshot["w"]))
    assert torch.equal(params["alone"], moved["alone"])
    assert torch.equal(buffers["mean"], statistics)
    assert buffers["count"] == 7


def test_a_vector_of_another_stage_is_our_fault(tmp_path: Path) -> None:
    params, buffers = stage()
    means = Parameters({"w": torch.zeros(3)}, {}, NAMES[3:], 2, 1)
    with TensorDraft(tmp_path / "piece", {}, {}) as draft, pytest.raises(OurFault, match="vector of 3"):
        settle(means, params, buffers, draft)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_finished_leaves_no_file(tmp_path: Path) -> None:
    with TensorDraft(tmp_path / "piece", {"w": torch.ones(3)}, {}) as draft:
        assert torch.equal(draft.replace("w", torch.zeros(3)), torch.ones(3))
        assert torch.equal(draft.replace("w", torch.ones(3)), torch.zeros(3))
    assert list(tmp_path.iterdir()) == []
