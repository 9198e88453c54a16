"""First moments that clusters average: which, where they lie, what becomes of them in a round and a piece."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ravnest_p2p.core.types import OptimizerSpec
from ravnest_p2p.testing.averaged_sim import mean_of
from ravnest_p2p.training import StageTrainer, averaging
from ravnest_p2p.training.late_mean import save, settle, take_in
from ravnest_p2p.training.means import Averaging, Means, means_of
from ravnest_p2p.training.momenta import WithMomenta, is_momentum
from ravnest_p2p.training.snapshot import draft_piece
from tests.unit.training_models import trainers_of

ADAMW = OptimizerSpec("adamw", 1e-2)
NEVER_STEPPED = "unused.weight"


class HalfUsed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(6, 5), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.used(x)
        return found


def stepped(seed: int, spec: OptimizerSpec = ADAMW) -> StageTrainer:
    """Of a cluster: the same weights in all, another batch in each."""
    torch.manual_seed(0)
    (trainer,) = trainers_of([HalfUsed()], spec, m=1, staleness=[0])
    torch.manual_seed(seed)
    data = {"x": torch.randn(8, 6), "y": torch.randint(0, 5, (8,))}
    trainer.forward(0, (), data, 0, speculative=False)
    trainer.backward(0, [])
    trainer.step()
    return trainer


def names_of(stage: WithMomenta) -> list[str]:
    return sorted(name for name in stage if not is_momentum(name)) + stage.names_of(
        {name for name in stage if not is_momentum(name)}
    )


def vector_of(stage: WithMomenta, how: Averaging) -> tuple[Means, list[str]]:
    names = names_of(stage)
    means = means_of(how, stage, {}, names, 2, 1)
    means.begin(stage, {}, tuple)
    return means, list(means.names)


@pytest.mark.parametrize(
    ("spec", "slot"),
    [
        (ADAMW, "exp_avg"),
        (OptimizerSpec("lamb", 1e-2), "exp_avg"),
        (OptimizerSpec("sgd", 1e-2, momentum=0.9), "momentum_buffer"),
        (OptimizerSpec("muon", 1e-2), "momentum_buffer"),
    ],
)
def test_each_rule_has_a_moment_and_all_clusters_end_with_its_mean(spec: OptimizerSpec, slot: str) -> None:
    trainers = [stepped(seed, spec) for seed in (1, 2)]
    wanted = torch.stack([trainer.optimizer_state()["used.weight"][slot] for trainer in trainers]).mean(0)
    stages = [WithMomenta(trainer) for trainer in trainers]
    flats = [averaging.gather(stage, {}, names_of(stage)) for stage in stages]
    mean_of(flats, [1.0, 1.0])
    for stage, flat in zip(stages, flats, strict=True):
        averaging.scatter(flat, stage, {}, names_of(stage))
    for trainer in trainers:
        assert torch.allclose(trainer.optimizer_state()["used.weight"][slot], wanted)
        assert NEVER_STEPPED not in trainer.optimizer_state()


@pytest.mark.parametrize("how", [Averaging(), Averaging("int8")], ids=lambda how: how.kind)
def test_moments_lie_behind_the_parameters_and_count_for_no_distance(how: Averaging) -> None:
    stage = WithMomenta(stepped(1))
    means, names = vector_of(stage, how)
    moments = [is_momentum(name) for name in names]
    assert moments == sorted(moments)
    assert sum(moments) == 4
    weights = sum(tensor.numel() for name, tensor in stage.items() if not is_momentum(name))
    means.mean[weights:] = 1e6
    assert means.norm < 1e3


def test_a_late_mean_moves_moments_by_what_others_had_and_the_piece_has_the_mean(tmp_path: Path) -> None:
    trainer = stepped(1)
    stage = WithMomenta(trainer)
    means, names = vector_of(stage, Averaging())
    before = trainer.optimizer_state()["used.weight"]["exp_avg"].clone()
    with draft_piece(
        tmp_path / "late", trainer.params, {}, trainer.optimizer_state(), version=1, batches_done=1
    ) as draft:
        means.mean.add_(0.5)
        mean = means.mean.clone()
        trainer.optimizer_state()["used.weight"]["exp_avg"].mul_(3.0)
        settle(means, stage, {}, draft)
        draft.finish()
    take_in(means, stage, {})
    assert torch.allclose(trainer.optimizer_state()["used.weight"]["exp_avg"], 3 * before + 0.5)
    saved = load_file(tmp_path / "late")
    parts = {name: part for name, _, part in averaging.parts(mean, stage, {}, names)}
    assert torch.equal(saved["optim/used.weight/exp_avg"], parts["/optim/used.weight/exp_avg"])
    assert f"optim/{NEVER_STEPPED}/exp_avg" not in saved


def test_a_piece_of_differences_has_the_common_moments(tmp_path: Path) -> None:
    trainer = stepped(1)
    stage = WithMomenta(trainer)
    means, _ = vector_of(stage, Averaging("sparse"))
    means.mean.fill_(7.0)
    with draft_piece(
        tmp_path / "piece", trainer.params, {}, trainer.optimizer_state(), version=1, batches_done=1
    ) as draft:
        save(means, stage, {}, draft)
        draft.finish()
    saved = load_file(tmp_path / "piece")
    assert (saved["optim/used.weight/exp_avg"] == 7.0).all()
    assert (saved["param/used.weight"] == 7.0).all()
    assert not (saved["optim/used.weight/exp_avg_sq"] == 7.0).any()
