"""What a stage trainer refuses, and what it keeps safe while micro-batches are in flight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ravnest_p2p.core.errors import BlobError, OurFault, PackageError, PlanError, TensorError
from ravnest_p2p.core.types import OptimizerSpec
from ravnest_p2p.training import StageTrainer
from ravnest_p2p.training.optimizer import early_step
from tests.unit.training_models import (
    ModuleComputation,
    Pipeline,
    classes,
    classifier,
    copies,
    cut,
    matrices_of,
    trainers_of,
)

ADAMW = OptimizerSpec("adamw", 1e-2, weight_decay=0.1)


def first_stage(m: int = 4, staleness: int = 2) -> StageTrainer:
    return trainers_of(cut(classifier(0), (3,)), ADAMW, m=m, staleness=(staleness, 0))[0]


def forwarded(trainer: StageTrainer, count: int) -> list[Tensor]:
    return [
        trainer.forward(i, (), batch, 0, speculative=False).outputs[0]
        for i, batch in enumerate(classes(count, 1))
    ]


def test_forwards_have_to_come_in_order_and_within_the_window() -> None:
    trainer, batch = first_stage(), classes(1, 0)[0]
    with pytest.raises(OurFault, match="0 is next"):
        trainer.forward(1, (), batch, 0, speculative=False)
    forwarded(trainer, 3)
    assert trainer.in_flight == 3
    with pytest.raises(OurFault, match="3 in flight"):
        trainer.forward(3, (), batch, 0, speculative=False)


def test_a_crossing_microbatch_runs_only_on_speculative_weights() -> None:
    trainer, batch = first_stage(m=2, staleness=1), classes(1, 0)[0]
    outputs = forwarded(trainer, 2)
    trainer.backward(0, [torch.ones_like(outputs[0])])
    with pytest.raises(OurFault, match="on weights with 0 updates"):
        trainer.forward(2, (), batch, 0, speculative=False)
    with pytest.raises(OurFault, match="before the speculative weights of batch 1 exist"):
        trainer.forward(2, (), batch, 0, speculative=True)
    trainer.speculate()
    with pytest.raises(OurFault, match="off the speculative"):
        trainer.forward(2, (), batch, 0, speculative=False)
    with pytest.raises(OurFault, match="2 is next"):
        trainer.forward(3, (), batch, 0, speculative=True)
    trainer.forward(2, (), batch, 0, speculative=True)


def test_a_microbatch_that_does_not_cross_waits_for_its_update() -> None:
    trainer = trainers_of([classifier(0)], ADAMW, m=1, staleness=[0])[0]
    batch = classes(1, 0)[0]
    trainer.forward(0, (), batch, 0, speculative=False)
    trainer.backward(0, ())
    with pytest.raises(OurFault, match="with 0 updates"):
        trainer.forward(1, (), batch, 0, speculative=False)


def test_speculation_has_one_moment() -> None:
    with pytest.raises(OurFault):
        first_stage(m=4, staleness=2).speculate()
    synchronous = first_stage(m=4, staleness=0)
    with pytest.raises(OurFault):
        synchronous.speculate()


def test_speculation_leaves_weights_and_optimizer_alone() -> None:
    trainers, batches = trainers_of([classifier(0)], ADAMW, m=2, staleness=[1]), classes(6, 1)
    trainer, seen = trainers[0], []
    speculate = trainer.speculate

    def watched() -> None:
        state = {f"{n}/{k}": t for n, s in trainer.optimizer_state().items() for k, t in s.items()}
        before = copies({**trainer.params, **state})
        speculate()
        after = {f"{n}/{k}": t for n, s in trainer.optimizer_state().items() for k, t in s.items()}
        after |= trainer.params
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
        seen.append(trainer.version)

    trainer.speculate = watched  # type: ignore[method-assign]
    Pipeline(trainers, batches, [1], 2).run()
    assert seen == [0, 1]


def test_a_step_needs_its_whole_batch() -> None:
    trainer = trainers_of([classifier(0)], ADAMW, m=2, staleness=[0])[0]
    with pytest.raises(OurFault, match="step 0 after only 0"):
        trainer.step()


@pytest.mark.parametrize(
    "gradients",
    [
        [],
        [torch.zeros(5, 10), torch.zeros(1)],
        [torch.zeros(5, 9)],
        [torch.zeros(5, 10, dtype=torch.float64)],
    ],
    ids=["none", "too many", "shape", "dtype"],
)
def test_foreign_gradients_are_refused_and_change_nothing(gradients: list[Tensor]) -> None:
    trainer = first_stage()
    outputs = forwarded(trainer, 1)
    with pytest.raises(TensorError):
        trainer.backward(0, gradients)
    assert trainer.backward(0, [torch.ones_like(outputs[0])]) == ()


def test_backwards_come_in_order() -> None:
    trainer = first_stage()
    outputs = forwarded(trainer, 2)
    with pytest.raises(OurFault, match="0 is next"):
        trainer.backward(1, [outputs[1]])


def test_the_last_stage_has_to_compute_a_scalar() -> None:
    trainer = trainers_of([classifier(0)], ADAMW, m=1, staleness=[0], loss=lambda output, _: output)[0]
    with pytest.raises(PackageError, match="scalar loss"):
        trainer.forward(0, (), classes(1, 0)[0], 0, speculative=False)


@pytest.mark.parametrize(("m", "staleness"), [(2, 3), (0, 0), (2, -1)])
def test_impossible_pipelines_are_refused(m: int, staleness: int) -> None:
    with pytest.raises(PlanError):
        first_stage(m, staleness)


def test_a_restored_trainer_goes_on_where_the_other_stopped() -> None:
    batches = classes(24, 1)
    whole = trainers_of([classifier(0)], ADAMW, m=2, staleness=[0])
    Pipeline(whole, batches, [0], 2).run()
    first = trainers_of([classifier(0)], ADAMW, m=2, staleness=[0])
    Pipeline(first, batches[:12], [0], 2).run()
    net = classifier(0)
    second = StageTrainer(
        ModuleComputation(net, nn.functional.cross_entropy),
        copies(first[0].params),
        copies(first[0].buffers),
        optimizer=ADAMW,
        microbatches_per_update=2,
        staleness=0,
        is_last=True,
        version=first[0].version,
        optimizer_state={n: copies(s) for n, s in first[0].optimizer_state().items()},
    )
    Pipeline([second], batches[12:], [0], 2)
    for i, batch in enumerate(batches[12:]):
        second.forward(i, (), batch, 0, speculative=False)
        second.backward(i, ())
        if i % 2:
            second.step()
    assert second.version == whole[0].version == 12
    assert all(torch.equal(second.params[key], whole[0].params[key]) for key in second.params)


@pytest.mark.parametrize(
    "state",
    [
        {"absent": {}},
        {"0.weight": {"step": torch.tensor(1.0)}},
        {
            "0.weight": {
                "step": torch.tensor(1.0),
                "exp_avg": torch.zeros(1),
                "exp_avg_sq": torch.zeros(10, 6),
            }
        },
        {"0.weight": {"momentum_buffer": torch.zeros(10, 6)}},
    ],
    ids=["name", "incomplete", "shape", "slot"],
)
def test_a_foreign_optimizer_state_is_refused(state: dict[str, dict[str, Tensor]]) -> None:
    net = classifier(0)
    with pytest.raises(BlobError):
        StageTrainer(
            ModuleComputation(net),
            dict(net.named_parameters()),
            dict(net.named_buffers()),
            optimizer=ADAMW,
            microbatches_per_update=1,
            staleness=0,
            is_last=False,
            optimizer_state=state,
        )


class Tracker(nn.Module):
    """Scales by a buffer that it rewrites in place, as spectral norm or a moving codebook does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))
        self.register_buffer("scale", torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.scale.mul_(0.9).add_(x.mean(0), alpha=0.1)
        return x * self.weight * self.scale


def test_buffers_rewritten_in_place_do_not_break_graphs_in_flight() -> None:
    """The gradients are those of plain PyTorch, where each backward follows its forward at once."""
    module, batches = Tracker(), classes(3, 1)
    computation = ModuleComputation(module)
    trainer = StageTrainer(
        computation,
        copies(dict(module.named_parameters())),
        copies(dict(module.named_buffers())),
        optimizer=OptimizerSpec("sgd", 1.0),
        microbatches_per_update=3,
        staleness=2,
        is_last=False,
    )
    for i, batch in enumerate(batches):
        trainer.forward(i, (), batch, 0, speculative=False)
    for i in range(3):
        trainer.backward(i, [torch.ones(5, 6)])
        if i == 0:
            trainer.speculate()
    trainer.step()
    for batch in batches:
        module(batch["x"]).sum().backward()
    torch.testing.assert_close(trainer.params["weight"].detach(), 1.0 - module.weight.grad)
    assert torch.equal(trainer.buffers["scale"], module.scale)


def test_received_tensors_get_gradients_only_where_they_can() -> None:
    class Masked:
        def forward(self, params, buffers, received, data, seed):
            value, mask, _ = received
            return (value * params["w"] * mask, mask)

    trainer = StageTrainer(
        Masked(),
        {"w": torch.full((3,), 2.0)},
        {},
        optimizer=ADAMW,
        microbatches_per_update=1,
        staleness=0,
        is_last=False,
    )
    received = (torch.ones(2, 3), torch.tensor([1, 0, 1]), torch.ones(4))
    outputs = trainer.forward(0, received, {}, 0, speculative=False).outputs
    assert not any(output.requires_grad for output in outputs)
    gradients = trainer.backward(0, [torch.ones(2, 3), None])
    assert torch.equal(gradients[0], torch.tensor([[2.0, 0.0, 2.0]] * 2))
    assert gradients[1:] == (None, None)


@pytest.mark.parametrize(
    "spec",
    [
        OptimizerSpec("sgd", 0.1, momentum=0.9, weight_decay=0.01, clip_norm=0.5),
        OptimizerSpec("sgd", 0.1),
        OptimizerSpec("adam", 0.01, weight_decay=0.01),
        OptimizerSpec("adamw", 0.01, weight_decay=0.1, clip_norm=0.5),
        OptimizerSpec(
            "adamw", 0.01, weight_decay=0.1, decay_vectors=False, schedule="step", schedule_updates=2
        ),
        OptimizerSpec("muon", 0.02, momentum=0.95, weight_decay=0.1, clip_norm=0.5),
        OptimizerSpec("lamb", 0.01, weight_decay=0.1, decay_vectors=False),
    ],
    ids=lambda spec: f"{spec.name} {spec.momentum}",
)
def test_the_early_step_of_a_complete_batch_is_the_step(spec: OptimizerSpec) -> None:
    trainer = trainers_of([classifier(0)], spec, m=2, staleness=[0])[0]
    matrices = matrices_of(classifier(0))
    for i, batch in enumerate(classes(10, 1)):
        trainer.forward(i, (), batch, 0, speculative=False)
        trainer.backward(i, ())
        if i % 2:
            sums = trainer._sums.of(i // 2)
            state = trainer.optimizer_state()
            kept = {name: copies(slots) for name, slots in state.items()}
            early = early_step(
                spec, trainer.params, sums, state, version=trainer.version, done=2, of=2, matrices=matrices
            )
            for name, slots in kept.items():
                assert all(torch.equal(state[name][slot], slots[slot]) for slot in slots)
            trainer.step()
            assert early.keys() == trainer.params.keys()
            assert all(torch.equal(early[key], trainer.params[key]) for key in early)


def test_gradients_of_the_next_batch_do_not_mix_into_a_late_step() -> None:
    batches, results = classes(4, 1), []
    for late in (False, True):
        trainer = trainers_of([classifier(0)], ADAMW, m=2, staleness=[1])[0]
        trainer.forward(0, (), batches[0], 0, speculative=False)
        trainer.forward(1, (), batches[1], 0, speculative=False)
        trainer.backward(0, ())
        trainer.speculate()
        trainer.forward(2, (), batches[2], 0, speculative=True)
        trainer.backward(1, ())
        for act in (trainer.step, lambda trainer=trainer: trainer.backward(2, ()))[:: -1 if late else 1]:
            act()
        trainer.forward(3, (), batches[3], 0, speculative=False)
        trainer.backward(3, ())
        trainer.step()
        results.append(trainer.params)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_a_parameter_that_only_some_microbatches_use_is_safe_in_flight() -> None:
    class Sometimes:
        def forward(self, params, buffers, received, data, seed):
            value = data["x"] * params["a"]
            return (((value * params["b"]) if data["use"] else value).sum(),)

    def batch(use: bool) -> dict[str, Tensor]:
        return {"x": torch.ones(3), "use": torch.tensor(use)}

    weights = {"a": torch.ones(3), "b": torch.ones(3)}
    sgd = OptimizerSpec("sgd", 0.1)
    trainer = StageTrainer(
        Sometimes(), weights, {}, optimizer=sgd, microbatches_per_update=2, staleness=1, is_last=True
    )
    trainer.forward(0, (), batch(False), 0, speculative=False)
    trainer.forward(1, (), batch(True), 0, speculative=False)
    trainer.backward(0, ())
    trainer.speculate()
    trainer.forward(2, (), batch(True), 0, speculative=True)
    trainer.backward(1, ())
    trainer.step()
    torch.testing.assert_close(trainer.params["b"].detach(), torch.full((3,), 0.95))
    trainer.backward(2, ())
    assert trainer.in_flight == 0
