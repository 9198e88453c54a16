"""What is not finite is left out at every stage alike, named where it arose, and never reaches a weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ravnest_p2p.training.finite as checks
from ravnest_p2p.core.errors import ChunkMismatchError, DivergedError
from ravnest_p2p.core.pipeline.nonfinite import MAX_IN_A_ROW, MAX_IN_WINDOW, STOP, WINDOW, Skipped
from ravnest_p2p.core.pipeline.notes import MAX_WHY_CHARS, LeftOut, Note, header_of, left_out, note_in
from ravnest_p2p.core.types import OptimizerSpec
from ravnest_p2p.model import StageComputation, stage_program
from ravnest_p2p.model.capture import capture
from ravnest_p2p.model.origin import origin
from ravnest_p2p.testing.lossy_link import Faults
from ravnest_p2p.testing.training_sim import train
from ravnest_p2p.training import StageTrainer
from ravnest_p2p.training.finite import finite, usable
from tests.unit.training_models import (
    ModuleComputation,
    Pipeline,
    classes,
    classifier,
    copies,
    cut,
    trainers_of,
)

SGD, ADAMW = OptimizerSpec("sgd", 0.1), OptimizerSpec("adamw", 1e-2, weight_decay=0.1, clip_norm=0.4)
BOUNDS, M, UPDATES = (3, 6), 4, 5
COUNT = M * UPDATES
SYNCHRONOUS, ASYNCHRONOUS = (0, 0, 0), (2, 1, 0)
TAUS = pytest.mark.parametrize("taus", [SYNCHRONOUS, ASYNCHRONOUS], ids=["synchronous", "asynchronous"])


class _Spoilt(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, spoilt: bool) -> Tensor:
        ctx.spoilt = spoilt
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * math.nan if ctx.spoilt else gradient, None


class Spoiling(nn.Module):
    """Hands on what it gets; back from these of its forwards come NaN."""

    def __init__(self, forwards: Sequence[int]) -> None:
        super().__init__()
        self._forwards, self._count = forwards, 0

    def forward(self, value: Tensor) -> Tensor:
        self._count += 1
        return _Spoilt.apply(value, self._count - 1 in self._forwards)


class Ending(nn.Module):
    """A stage with something after it, its parameters under their names."""

    def __init__(self, stage: nn.Sequential, last: nn.Module) -> None:
        super().__init__()
        for name, child in stage.named_children():
            self.add_module(name, child)
        self._last = (last,)

    def forward(self, value: Tensor) -> Tensor:
        for child in self.children():
            value = child(value)
        return self._last[0](value)


def broken(batches: list[dict[str, Tensor]], *at: int) -> list[dict[str, Tensor]]:
    """The micro-batches, with one NaN in each of these."""
    found = [dict(batch) for batch in batches]
    for i in at:
        found[i]["x"] = found[i]["x"].clone()
        found[i]["x"][3, 2] = math.nan
    return found


def assert_finite(trainers: Sequence[StageTrainer]) -> None:
    for trainer in trainers:
        state = [slot for slots in trainer.optimizer_state().values() for slot in slots.values()]
        assert all(map(finite, [*trainer.params.values(), *trainer.buffers.values(), *state]))


def plain(batches: list[dict[str, Tensor]], without: Sequence[int]) -> dict[str, Tensor]:
    """PyTorch in one process; the sum is divided by m all the same."""
    net = classifier(3)
    optimizer = torch.optim.SGD(net.parameters(), lr=SGD.lr)
    for u in range(UPDATES):
        optimizer.zero_grad()
        for i in range(u * M, (u + 1) * M):
            if i not in without:
                loss = nn.functional.cross_entropy(net(batches[i]["x"]), batches[i]["y"])
                (loss / M).backward()
        optimizer.step()
    return dict(net.state_dict())


def state_of(trainers: Sequence[StageTrainer]) -> dict[str, Tensor]:
    return {name: value.detach() for t in trainers for name, value in {**t.params, **t.buffers}.items()}


def test_training_is_that_of_plain_pytorch_without_the_micro_batch() -> None:
    batches = classes(COUNT, 4)
    trainers = trainers_of(cut(classifier(3), BOUNDS), SGD, m=M, staleness=SYNCHRONOUS)
    losses = Pipeline(trainers, broken(batches, 6), SYNCHRONOUS, M).run().losses
    expected = plain(batches, [6])
    found = state_of(trainers)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert [math.isnan(loss) for loss in losses] == [i == 6 for i in range(COUNT)]


@TAUS
def test_every_stage_leaves_the_same_out_and_says_where_it_arose(taus: tuple[int, ...]) -> None:
    trainers = trainers_of(cut(classifier(3), BOUNDS), ADAMW, m=M, staleness=taus)
    Pipeline(trainers, broken(classes(COUNT, 4), 5, 6, 13), taus, M).run()
    assert [trainer.skipped.microbatches for trainer in trainers] == [3, 3, 3]
    assert [trainer.skipped.updates for trainer in trainers] == [0, 0, 0]
    assert {t.skipped.why for t in trainers} == {"stage 0, micro-batch 13: an activation is not finite"}
    assert [trainer.version for trainer in trainers] == [UPDATES] * 3
    assert_finite(trainers)


@pytest.mark.parametrize(
    "link", [{}, {"latency_s": 2.5}, {"faults": Faults(0.05, 0.05, 5.0, 1.0), "seed": 1}],
    ids=["at once", "slow", "broken"],
)  # fmt: skip
def test_timing_changes_nothing_of_what_is_left_out(link: dict[str, Any]) -> None:
    batches = broken(classes(COUNT, 4), 0, 7, 8)
    stages = cut(classifier(3), BOUNDS)
    plainly, simulated = (trainers_of(stages, ADAMW, m=M, staleness=ASYNCHRONOUS) for _ in "ab")
    Pipeline(plainly, batches, ASYNCHRONOUS, M).run()
    numbers = {"staleness": ASYNCHRONOUS, "microbatches_per_update": M, "updates": UPDATES}
    train(simulated, batches.__getitem__, **numbers, **link)
    for mine, other in zip(simulated, plainly, strict=True):
        assert all(torch.equal(mine.params[name], other.params[name]) for name in other.params)
        assert all(torch.equal(mine.buffers[name], other.buffers[name]) for name in other.buffers)
        assert mine.skipped.microbatches == 3


def test_a_loss_that_is_not_finite_is_left_out_before_anything_is_added() -> None:
    def loss(output: Tensor, y: Tensor) -> Tensor:
        value = nn.functional.cross_entropy(output, y.abs())
        return value * math.inf if y[0] < 0 else value

    batches = classes(COUNT, 4)
    batches[9] = {**batches[9], "y": -batches[9]["y"].clamp(min=1)}
    trainers = trainers_of(cut(classifier(3), BOUNDS), SGD, m=M, staleness=ASYNCHRONOUS, loss=loss)
    Pipeline(trainers, batches, ASYNCHRONOUS, M).run()
    assert {t.skipped.why for t in trainers} == {"stage 2, micro-batch 9: the loss is not finite"}
    assert_finite(trainers)


@TAUS
def test_a_gradient_that_breaks_on_its_way_counts_at_the_stages_after_alone(taus: tuple[int, ...]) -> None:
    """At stage 1: what stage 2 added stays, stages 1 and 0 leave it out."""
    stages = cut(classifier(3, norm=False), BOUNDS)
    spoilt, whole = (trainers_of(stages, SGD, m=COUNT, staleness=taus) for _ in "ab")
    spoilt[1]._computation = ModuleComputation(Ending(stages[1], Spoiling([9])))
    batches = classes(COUNT, 4)
    for trainers in (spoilt, whole):
        Pipeline(trainers, batches, taus, COUNT).run()
    assert [trainer.skipped.microbatches for trainer in spoilt] == [1, 1, 0]
    assert {trainer.skipped.why for trainer in spoilt[:2]} == {
        "stage 1, micro-batch 9: a gradient is not finite: of 3.bias first"
    }
    pairs = zip(spoilt, whole, strict=True)
    same = [all(torch.equal(mine.params[n], other.params[n]) for n in other.params) for mine, other in pairs]
    assert same == [False, False, True]
    assert_finite(spoilt)


def test_what_breaks_on_its_way_back_through_the_first_stage_is_seen_in_its_bias() -> None:
    stages = cut(classifier(3, norm=False), BOUNDS)
    trainers = trainers_of(stages, ADAMW, m=M, staleness=ASYNCHRONOUS)
    trainers[0]._computation = ModuleComputation(Ending(stages[0], Spoiling([M])))
    Pipeline(trainers, classes(COUNT, 4), ASYNCHRONOUS, M).run()
    assert [(t.skipped.microbatches, t.skipped.updates) for t in trainers] == [(1, 0), (0, 0), (0, 0)]
    assert trainers[0].skipped.why == "stage 0, micro-batch 4: a gradient is not finite: of 0.bias first"
    assert_finite(trainers)


def test_an_update_that_is_not_finite_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first stage, which sends no gradient on; its parameters are all large ones."""
    monkeypatch.setattr(checks, "SMALL", 0)
    stages = cut(classifier(3, norm=False), BOUNDS)
    trainers = trainers_of(stages, ADAMW, m=M, staleness=ASYNCHRONOUS)
    trainers[0]._computation = ModuleComputation(Ending(stages[0], Spoiling([2 * M - 1])))
    states: list[dict[str, Tensor]] = []

    def note(s: int) -> None:
        if s == 0:
            states.append(copies(trainers[0].params))

    Pipeline(trainers, classes(COUNT, 4), ASYNCHRONOUS, M, after_step=note).run()
    moved = [any(not torch.equal(a[n], b[n]) for n in a) for a, b in pairwise(states)]
    assert moved == [False, True, True, True]
    assert [trainer.skipped.updates for trainer in trainers] == [1, 0, 0]
    assert [trainer.skipped.microbatches for trainer in trainers] == [0, 0, 0]
    assert trainers[0].skipped.why == "stage 0, update 1: the gradient of 0.weight is not finite"
    assert_finite(trainers)


def test_what_a_peer_sends_is_not_blamed_on_the_stage() -> None:
    (trainer,) = trainers_of([classifier(3, norm=False)], SGD, m=2, staleness=(0,))
    trainer._is_last, trainer._computation = False, ModuleComputation(classifier(3, norm=False))
    before = copies(trainer.params)
    for i, value in enumerate((math.nan, 1.0)):
        sent = trainer.forward(i, (), classes(1, i)[0], 0, speculative=False)
        gradient = torch.full_like(sent.outputs[0], value)
        trainer.backward(i, [gradient])
        assert (trainer.gradient_note.left_out is not None) == (i == 0)
    trainer.step()
    assert trainer.skipped.why == "stage 1, micro-batch 0: it sent a gradient that is not finite"
    assert not torch.equal(trainer.params["0.weight"], before["0.weight"])
    assert_finite([trainer])


def test_a_gradient_for_what_was_left_out_is_not_looked_at() -> None:
    trainer = trainers_of([classifier(3)], SGD, m=1, staleness=(0,))[0]
    trainer._is_last, trainer._computation = False, ModuleComputation(classifier(3))
    sent = trainer.forward(0, (), broken(classes(1, 0), 0)[0], 0, speculative=False)
    assert sent.outputs == ()
    assert sent.note.left_out == LeftOut(0, "an activation is not finite")
    assert trainer.backward(0, [torch.ones(7)]) == ()
    trainer.step()
    assert trainer.skipped.microbatches == 1


@pytest.mark.parametrize("spread", [1, 3])
def test_too_much_ends_the_run_with_the_place_and_what_to_do(spread: int) -> None:
    allowed = MAX_IN_A_ROW if spread == 1 else MAX_IN_WINDOW
    skipped = Skipped()
    for n in range(allowed):
        skipped.microbatch(n * spread, LeftOut(2, "the loss is not finite"))
    with pytest.raises(DivergedError) as found:
        skipped.microbatch(allowed * spread, LeftOut(2, "the loss is not finite"))
    text = str(found.value)
    assert f"stage 2, micro-batch {allowed * spread}: the loss is not finite" in text
    assert "lower the learning rate" in text
    assert "clip_norm" in text


def test_what_is_left_out_seldom_never_ends_a_run() -> None:
    skipped = Skipped()
    for n in range(1000):
        skipped.microbatch(n * WINDOW // MAX_IN_WINDOW, LeftOut(0, "x"))
        skipped.update(n * WINDOW // MAX_IN_WINDOW, 0, "y")
    assert (skipped.microbatches, skipped.updates) == (1000, 1000)


def test_stop_ends_at_the_first() -> None:
    trainers = trainers_of(cut(classifier(3), BOUNDS), SGD, m=M, staleness=SYNCHRONOUS, skipped=Skipped(STOP))
    with pytest.raises(DivergedError, match="stage 0, micro-batch 6"):
        Pipeline(trainers, broken(classes(COUNT, 4), 6), SYNCHRONOUS, M).run()


def test_diverging_weights_end_the_run_and_stay_finite() -> None:
    spec = OptimizerSpec("sgd", 1e6)
    trainers = trainers_of(
        cut(classifier(3, norm=False), BOUNDS), spec, m=1, staleness=(1, 1, 0),
        loss=lambda output, y: (output**4).sum(),
    )  # fmt: skip
    with pytest.raises(DivergedError, match="in a row"):
        Pipeline(trainers, classes(200, 4), (1, 1, 0), 1).run()
    assert_finite(trainers)


def captured(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[StageComputation, dict[str, Tensor]]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, value: Tensor) -> Tensor:
            return self.head(function(self.first(value)))

    loss = nn.functional.cross_entropy
    package = capture(Net(), (x,), loss=loss, example_labels=(torch.zeros(3, dtype=torch.long),))
    program = package.program
    return StageComputation(stage_program(program, 0, len(program.layer_bounds))), package.weights


@pytest.mark.parametrize(
    ("function", "x", "expected"),
    [
        (lambda v: (v - v.detach()).log(), torch.ones(3, 4), ""),
        (lambda v: (v.tanh() - 2).sqrt(), torch.ones(3, 4), "aten.sqrt.default in layer"),
        (lambda v: v.tanh(), torch.full((3, 4), math.nan), "the data (x0)"),
        (lambda v: v.masked_fill(v > 0, -math.inf).softmax(1).log(), torch.ones(3, 4), ""),
        (lambda v: v.tanh() * 1e30 * 1e30, torch.ones(3, 4), "aten.mul.Tensor in layer"),
    ],
    ids=["log of zero", "root", "data", "mask", "overflow"],
)
def test_the_first_operation_that_breaks_is_named(
    function: Callable[[Tensor], Tensor], x: Tensor, expected: str
) -> None:
    computation, weights = captured(function, torch.ones(3, 4))
    data = {"x0": x, "y0": torch.zeros(3, dtype=torch.long)}
    params = {name: weights[name] for name in computation.stage.params}
    found = origin(computation, params, {}, (), data, 0)
    if expected:
        assert found.startswith(expected)
    else:
        assert "log" not in found, "-infinity is what a mask is made of"


def test_a_weight_that_takes_part_is_named() -> None:
    computation, weights = captured(lambda v: v, torch.ones(3, 4))
    params = {name: weights[name] for name in computation.stage.params}
    params["head.weight"] = torch.full((2, 4), 3e38)
    data = {"x0": torch.full((3, 4), 10.0), "y0": torch.zeros(3, dtype=torch.long)}
    assert "with head.weight" in origin(computation, params, {}, (), data, 0)


def test_finite_and_usable() -> None:
    big = torch.full((1000,), 3e38)
    assert finite(big)
    assert usable(big)
    assert finite(torch.full((1000,), 6e4, dtype=torch.float16))
    assert finite(torch.tensor([1, 2]))
    assert usable(torch.empty(0))
    for bad in (math.nan, math.inf, -math.inf):
        spoilt = torch.zeros(1000)
        spoilt[77] = bad
        assert not finite(spoilt)
        assert usable(spoilt) == (bad == -math.inf)
    assert not usable(torch.tensor([-math.inf, math.nan]))


def test_notes_cross_as_they_are() -> None:
    for note in (Note(), Note(LeftOut(1, "the loss")), Note(None, 2.5), Note(left_out(0, "ŵ\n" * 300), 1e-9)):
        assert note_in(header_of(note), 2) == note
    assert header_of(Note()) == {}
    assert note_in(header_of(Note(None, 1e300)), 1).norm == 1e38
    assert len(left_out(0, "x" * 999).why) == MAX_WHY_CHARS


@pytest.mark.parametrize(
    "header",
    [
        {"out": 2}, {"out": -1}, {"out": True}, {"out": "0"}, {"out": 0, "why": 5},
        {"out": 0, "why": "x" * (MAX_WHY_CHARS + 1)}, {"norm": -1.0}, {"norm": math.nan},
        {"norm": math.inf}, {"norm": 1}, {"norm": 1e39}, {"norm": None},
    ],
)  # fmt: skip
def test_a_note_that_makes_no_sense_is_refused(header: dict[str, Any]) -> None:
    with pytest.raises(ChunkMismatchError):
        note_in(header, 2)


def test_a_text_from_a_peer_is_made_harmless() -> None:
    assert note_in({"out": 0, "why": "\x1b[31mred"}, 1).left_out == LeftOut(0, "?[31mred")
