"""Capture copies what a model does, leaves it as it was, and refuses what it could not copy."""

from __future__ import annotations

import copy
import random

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ravnest_p2p.core.errors import CaptureError
from ravnest_p2p.model import capture
from tests.unit.model_zoo import make

X, Y = torch.randn(4, 6), torch.randn(4, 2)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.last = nn.Linear(6, 2)


def take(model: nn.Module, **options):  # type: ignore[no-untyped-def]
    return capture(model, (X,), loss=options.pop("loss", F.mse_loss), example_labels=(Y,), **options)


def test_the_users_model_and_randomness_are_left_as_they_were() -> None:
    case = make("cnn")
    case.model.eval()
    case.model.norm2.train()
    before = copy.deepcopy(case.model.state_dict())
    modes = [module.training for module in case.model.modules()]
    inputs = case.inputs[0].clone()
    torch.manual_seed(5), random.seed(5), numpy.random.seed(5)
    expected = torch.rand(3), random.random(), numpy.random.rand()
    torch.manual_seed(5), random.seed(5), numpy.random.seed(5)
    capture(case.model, case.inputs, loss=case.loss, example_labels=case.labels)
    assert torch.equal(torch.rand(3), expected[0])
    assert (random.random(), numpy.random.rand()) == expected[1:]
    assert [module.training for module in case.model.modules()] == modes
    assert torch.equal(case.inputs[0], inputs)
    for name, tensor in case.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(p.grad is None for p in case.model.parameters())


def test_fields_and_names_are_stable() -> None:
    case = make("cnn")
    package = capture(case.model, case.inputs, loss=case.loss, example_labels=case.labels)
    assert [leaf.name for leaf in package.program.inputs] == ["x0", "y0"]
    assert package.weights.keys() == case.model.state_dict().keys()
    again = capture(case.model, case.inputs, loss=case.loss, example_labels=case.labels)
    assert again.program.to_json() == package.program.to_json()


def test_the_model_may_return_its_loss_itself() -> None:
    class Own(Base):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.mse_loss(self.last(self.first(x).relu()), y)

    assert len(take(Own(), loss=None).layers) == 2


def test_a_loss_module_brings_its_own_tensors() -> None:
    class Model(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x))

    labels = torch.randint(2, (4,))
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]))
    package = capture(Model(), (X,), loss=loss, example_labels=(labels,))
    assert "loss::weight" in package.weights
    assert package.state_dict().keys() == Model().state_dict().keys()


def test_frozen_parameters_are_not_trained() -> None:
    class Model(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x))

    model = Model()
    model.first.bias.requires_grad_(False)
    program = take(model).program
    assert [leaf.name for leaf in program.buffers] == ["first.bias"]
    assert "first.bias" not in [leaf.name for leaf in program.params]


def test_writes_in_place_become_values() -> None:
    class Model(Base):
        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            row = h[:, 2:4]
            h[:, 0] = 0
            row += 1
            h.transpose(0, 1)[5].mul_(2)
            h.view(-1)[3:5] = h.sum()
            noise = h.new_empty((4, 1)).bernoulli_(0.5)
            shifted = torch.zeros(4, 6)
            shifted[:, 1:] = x[:, :-1]
            return self.last(h * noise + shifted + row.sum())

    take(Model())


def test_buffers_are_written_as_in_eager() -> None:
    class Model(Base):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("average", torch.zeros(6))
            self.register_buffer("table", torch.zeros(2, 3))

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            before = self.average * 2
            self.average.mul_(0.9).add_(h.detach().mean(0), alpha=0.1)
            self.table[1, :2] += 1
            return self.last(h * self.average + before + self.table.sum())

    package = take(Model())
    names = {package.program.leaves[slot].name for slot in package.program.mutated_slots}
    assert names == {"average", "table"}


def test_no_grad_and_disabled_autocast_are_kept() -> None:
    class Model(Base):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                scale = self.first(x).std()
            with torch.autocast("cpu", enabled=False):
                h = self.first(x) / scale
            return self.last(h * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))

    assert any(node.no_grad for node in take(Model()).program.nodes)


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return x.clone()

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad * 2


class CustomGradient(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(_Doubled.apply(self.first(x)))


class Counting(Base):
    count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.last(self.first(x)) * self.count


class Branching(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) if x.sum() > 0 else x)


class Forbidden(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.linalg.inv(self.first(x)[:4, :4]) @ self.first(x))


class Mixed(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.last(self.first(x)).float()


class Vector(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(x)


class Detached(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(x).detach()


class Outside(Base):
    outer = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) * OUTSIDE)


OUTSIDE = nn.Parameter(torch.ones(6))


class Truncating(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) * torch.div(x.long(), 2, rounding_mode="trunc"))


class SparseTable(Base):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 6, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) + self.table(x.long().clamp(0, 8)).sum(1))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (CustomGradient, "custom autograd.Function _Doubled.*straight-through"),
        (Counting, "'count' changes in forward.*register_buffer"),
        (Branching, r"the model \(Branching\): a Python `if`.*line \d+.*torch.where"),
        (Forbidden, "inv.*may not travel"),
        (Mixed, "autocast"),
        (Truncating, "not safe"),
        (SparseTable, "table.*sparse"),
        (Outside, "no parameter of the model|nn.Parameter"),
    ],
)
def test_unfaithful_models_are_refused(model: type[nn.Module], says: str) -> None:
    with pytest.raises(CaptureError, match=f"(?s){says}"):
        take(model())


def test_the_loss_must_be_a_scalar_that_depends_on_parameters() -> None:
    with pytest.raises(CaptureError, match="scalar"):
        take(Vector(), loss=lambda output, label: output - label)
    with pytest.raises(CaptureError, match="depends on no parameter"):
        take(Detached())


def test_examples_must_be_tensors_that_can_travel() -> None:
    with pytest.raises(CaptureError, match="not a tensor"):
        capture(Vector(), ([1.0],), loss=F.mse_loss)  # type: ignore[arg-type]
    with pytest.raises(CaptureError, match="complex64"):
        capture(Vector(), (torch.zeros(4, 6, dtype=torch.complex64),), loss=F.mse_loss)
