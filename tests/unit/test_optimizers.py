"""Optimizers by name: what users write, what travels, which parameters Muon moves, going on from a piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ravnest_p2p as rn
from ravnest_p2p.core.errors import BlobError, RecordFormatError
from ravnest_p2p.core.optimizers import OPTIMIZERS, decays
from ravnest_p2p.core.planning.memory import optimizer_slots
from ravnest_p2p.core.types import OptimizerSpec
from ravnest_p2p.model.capture import capture
from ravnest_p2p.model.matrices import hidden_matrices
from ravnest_p2p.network.records_manifest import manifest_bytes, parse_manifest
from ravnest_p2p.training import StageTrainer
from ravnest_p2p.training.muon import PlainMuon
from ravnest_p2p.training.optimizer import SLOTS
from tests.unit.test_manifests import a_spec
from tests.unit.training_models import (
    ModuleComputation,
    Pipeline,
    classes,
    classifier,
    copies,
    matrices_of,
    trainers_of,
)

ALL: dict[str, OptimizerSpec] = {
    "sgd": rn.SGD(0.1, momentum=0.9),
    "adam": rn.Adam(),
    "adamw": rn.AdamW(lr=3e-3, no_decay=["*.embed.*"]),
    "muon": rn.Muon(clip_norm=1.0),
    "lamb": rn.LAMB(schedule="step", schedule_updates=10),
}


def test_the_factories_fill_in_what_is_asked() -> None:
    assert ALL.keys() == set(OPTIMIZERS) == SLOTS.keys()
    assert all(spec.name == name for name, spec in ALL.items())
    assert rn.AdamW(1e-2) == OptimizerSpec("adamw", 1e-2, weight_decay=1e-2)
    assert rn.SGD(0.1, 0.9, 1e-3) == OptimizerSpec("sgd", 0.1, momentum=0.9, weight_decay=1e-3)
    assert rn.Adam(1e-2, (0.8, 0.9), 1e-6, 0.1).betas == (0.8, 0.9)
    assert ALL["adamw"].no_decay == ("*.embed.*",)
    assert rn.SGD(0.1, no_decay="*.bias").no_decay == ("*.bias",)
    assert not rn.LAMB().decay_vectors
    assert rn.LAMB(decay_vectors=True).decay_vectors


@pytest.mark.parametrize("wrong", [{"betas": (0.9, 0.9)}, {"warmup": 3}, {"name": "adam"}])
def test_a_number_that_an_optimizer_does_not_know_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        rn.SGD(0.1, **wrong)


@pytest.mark.parametrize("name", ALL)
def test_specs_travel(name: str) -> None:
    spec = a_spec(optimizer=ALL[name], precision="bf16", staleness_correction="stash", compression="auto")
    assert parse_manifest(manifest_bytes(spec)) == spec


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (b'"name":"adamw"', b'"name":"lion"'),
        (b'"momentum":0.0', b'"momentum":1.0'),
        (b'"betas":[0.9,0.999]', b'"betas":[0.9,1.0]'),
        (b'"lr":0.001', b'"lr":-0.001'),
        (b'"clip_norm":null', b'"clip_norm":0.0'),
        (b'"schedule":"constant"', b'"schedule":"step"'),
        (b'"no_decay":[]', b'"no_decay":[""]'),
        (b'"no_decay":[]', b'"no_decay":["' + b"*a" * 65 + b'"]'),
        (b'"no_decay":[]', b'"no_decay":[' + b'"a",' * 32 + b'"a"]'),
        (b'"precision":"fp32"', b'"precision":"fp8"'),
        (b'"staleness_correction":"speculative"', b'"staleness_correction":"pipemare"'),
        (b'"compression":"none"', b'"compression":"int2"'),
    ],
)
def test_hostile_numbers_are_refused_on_arrival(ours: bytes, theirs: bytes) -> None:
    data = manifest_bytes(a_spec())
    assert ours in data
    with pytest.raises(RecordFormatError):
        parse_manifest(data.replace(ours, theirs))


def test_what_decays_follows_from_name_and_rank() -> None:
    spec = OptimizerSpec("adamw", 1e-3, decay_vectors=False, no_decay=("*embed*", "head.weight"))
    found = {name: decays(spec, name, 2) for name in ("h.0.embed.w", "head.weight", "head.weights", "h.1.w")}
    assert list(found.values()) == [False, False, True, True]
    assert not decays(spec, "h.1.b", 1)
    assert decays(OptimizerSpec("adamw", 1e-3), "h.1.b", 1)


def test_the_planner_counts_the_state_that_is_kept() -> None:
    for spec in ALL.values():
        trainer = trainers_of([classifier(0)], spec, m=1, staleness=[0])[0]
        Pipeline([trainer], classes(2, 0), [0], 1).run()
        kept = [slot for slots in trainer.optimizer_state().values() for slot in slots.values() if slot.ndim]
        used = sum(slot.numel() for slot in kept)
        held = sum(weight.numel() for weight in trainer.params.values())
        assert used <= optimizer_slots(spec) * held
        assert spec.name == "muon" or used == optimizer_slots(spec) * held


class Attention(nn.Module):
    """A small transformer with all that Muon has to leave alone."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(11, 8), nn.Parameter(torch.randn(5, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 11, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.block(self.words(x) + self.places))).flatten(0, 1)


BLOCK = {f"block.{name}.weight" for name in ("self_attn.out_proj", "linear1", "linear2")} | {
    "block.self_attn.in_proj_weight"
}
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str]]] = {
    "transformer": (lambda: Attention(tied=False), (2, 5), BLOCK),
    "tied": (lambda: Attention(tied=True), (2, 5), BLOCK),
    "perceptron": (lambda: classifier(0), (4, 6), {"3.weight"}),
    "one layer": (lambda: nn.Linear(6, 4), (4, 6), set()),
    "convolutions": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 1), nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 4)),
        (4, 2, 3),
        {"2.weight"},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_hidden_matrices_lie_between_the_first_and_the_last_layer(name: str) -> None:
    torch.manual_seed(0)
    make, shape, expected = MODELS[name]
    words = name in ("transformer", "tied")
    x = torch.randint(11, shape) if words else torch.randn(shape)
    y = torch.zeros(10 if words else 4, dtype=torch.long)
    package = capture(make(), (x,), loss=nn.functional.cross_entropy, example_labels=(y,))
    assert hidden_matrices(package.program) == expected


@pytest.mark.parametrize("shape", [(8, 8), (12, 5), (5, 12), (2, 2)])
def test_our_muon_is_torchs_bit_for_bit(shape: tuple[int, int]) -> None:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon to compare with")
    torch.manual_seed(0)
    start = torch.randn(shape)
    ours, theirs = start.clone(), start.clone()
    kinds = [(ours, PlainMuon), (theirs, torch.optim.Muon)]
    optimizers = [kind([weight], lr=0.02, weight_decay=0.1, momentum=0.9) for weight, kind in kinds]
    for _ in range(5):
        gradient = torch.randn(shape)
        for (weight, _), optimizer in zip(kinds, optimizers, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, start)
    with pytest.raises(ValueError, match="matrices"):
        PlainMuon([torch.zeros(3)], lr=0.1)


def trainer_from(module: nn.Module, spec: OptimizerSpec, **state: Any) -> StageTrainer:
    return StageTrainer(
        ModuleComputation(module, nn.functional.cross_entropy),
        copies(dict(module.named_parameters())),
        copies(dict(module.named_buffers())),
        optimizer=spec,
        microbatches_per_update=2,
        staleness=0,
        is_last=True,
        matrices=matrices_of(module),
        **state,
    )


def train(trainer: StageTrainer, batches: Sequence[dict[str, Tensor]]) -> StageTrainer:
    for i, batch in enumerate(batches):
        trainer.forward(i, (), batch, 0, speculative=False)
        trainer.backward(i, ())
        if i % 2:
            trainer.step()
    return trainer


@pytest.mark.parametrize("name", ALL)
def test_training_goes_on_from_saved_state_as_if_never_stopped(name: str) -> None:
    module, batches = classifier(0), classes(12, 1)
    whole = train(trainer_from(module, ALL[name]), batches)
    first = train(trainer_from(module, ALL[name]), batches[:6])
    module.load_state_dict({**first.params, **first.buffers})
    second = trainer_from(module, ALL[name], version=3, optimizer_state=first.optimizer_state())
    train(second, batches[6:])
    assert all(torch.equal(whole.params[key], second.params[key]) for key in whole.params)


def test_a_torch_without_muon_trains_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    module, batches = classifier(0), classes(6, 1)
    usual = train(trainer_from(module, ALL["muon"]), batches)
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    other = trainer_from(module, ALL["muon"])
    assert any(isinstance(one, PlainMuon) for one in other.optimizer._optimizers.values())
    train(other, batches)
    assert all(torch.equal(usual.params[key], other.params[key]) for key in usual.params)


def test_state_of_another_rule_is_refused() -> None:
    moments = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(10, 6), "exp_avg_sq": torch.zeros(10, 6)}
    for state in ({"0.weight": moments}, {"1.bias": {"momentum_buffer": torch.zeros(10)}}):
        with pytest.raises(BlobError, match="slots"):
            trainer_from(classifier(0), ALL["muon"], optimizer_state=state)
