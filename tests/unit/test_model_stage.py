"""A stage with its weights: forward and backward give what autograd gives for the whole model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ravnest_p2p.core.errors import BlobError, FrameFormatError
from ravnest_p2p.model import Package, Stage, Terms, capture, split
from ravnest_p2p.model.mixed import MixedComputation
from tests.unit.test_model_stages import captured, fields

Gradients = list[Tensor | None] | None


def forward(stages: list[Stage], data: dict[str, Tensor], seed: int = 0) -> Tensor:
    carried: tuple[Tensor, ...] = ()
    for stage in stages:
        carried = stage.forward(carried, data, seed)
    return carried[0]


def backward(stages: list[Stage]) -> Gradients:
    back: Gradients = None
    for stage in reversed(stages):
        back = stage.backward(back)
    return back


def gradients(stages: list[Stage]) -> dict[str, Tensor]:
    return {name: gradient.clone() for stage in stages for name, gradient in stage.gradients.items()}


def other(data: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.roll(1, 0) for name, tensor in data.items()}


@pytest.mark.parametrize("name", ["mlp", "gpt_tied"])
def test_a_plain_model_is_trained_as_by_torch_itself(name: str) -> None:
    case, package = captured(name)
    data = fields(case)
    model = copy.deepcopy(case.model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    package = capture(model, case.inputs, loss=case.loss, example_labels=case.labels)
    stages = split(package, stages=2)
    optimizers = [torch.optim.AdamW(stage.parameters(), 0.01) for stage in stages]
    expected = torch.optim.AdamW(model.parameters(), 0.01)
    for _ in range(3):
        expected.zero_grad()
        loss = case.loss(model(*case.inputs), *case.labels)
        loss.backward()
        assert torch.equal(forward(stages, data), loss.detach())
        assert backward(stages) == []
        expected.step()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    found = package.state_dict({n: t for stage in stages for n, t in stage.weights.items()})
    for name, tensor in model.state_dict().items():
        if "mask" not in name:
            assert torch.equal(found[name], tensor), name


def test_micro_batches_wait_in_turn_and_their_gradients_are_summed() -> None:
    case, package = captured("cnn")
    data = fields(case)
    alone = []
    stages = split(package, [2, 4])
    for seed, given in ((1, data), (2, other(data))):
        forward(stages, given, seed)
        backward(stages)
        alone.append(gradients(stages))
        for stage in stages:
            for parameter in stage.parameters():
                parameter.grad = None
    stages = split(package, [2, 4])
    forward(stages, data, 1)
    forward(stages, other(data), 2)
    backward(stages)
    assert all(torch.equal(g, alone[0][n]) for n, g in gradients(stages).items())
    backward(stages)
    assert all(torch.equal(g, alone[0][n] + alone[1][n]) for n, g in gradients(stages).items())
    assert gradients(stages).keys() == {leaf.name for leaf in package.program.params}


def test_a_tied_weight_has_the_gradients_of_all_its_uses_on_its_owner() -> None:
    case, package = captured("gpt_tied")
    (whole,) = split(package, [])
    forward([whole], fields(case), 3)
    backward([whole])
    stages = split(package, [3, 6])
    forward(stages, fields(case), 3)
    backward(stages)
    assert [("tokens.weight" in stage.params) for stage in stages] == [True, False, False]
    found = gradients(stages)
    assert found.keys() == whole.gradients.keys()
    assert all(torch.equal(gradient, found[name]) for name, gradient in whole.gradients.items())


def test_the_package_keeps_its_weights() -> None:
    case, package = captured("cnn")
    before = {name: tensor.clone() for name, tensor in package.weights.items()}
    stages = split(package, stages=2)
    forward(stages, fields(case))
    backward(stages)
    for stage in stages:
        torch.optim.SGD(stage.parameters(), 1.0).step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in package.weights.items())
    moved = {n: t for stage in stages for n, t in stage.weights.items()}
    assert moved.keys() == before.keys()
    assert not torch.equal(moved["norm1.running_mean"], before["norm1.running_mean"])


def test_what_does_not_belong_is_refused() -> None:
    case, package = captured("mlp")
    data = fields(case)
    first, last = split(package, [1])
    with pytest.raises(ValueError, match="no micro-batch waits"):
        last.backward()
    with pytest.raises(FrameFormatError, match="0 tensors received"):
        last.forward((), data)
    with pytest.raises(BlobError, match="x0 is missing"):
        first.forward((), {})
    sent = first.forward((), data)
    with pytest.raises(FrameFormatError, match="2 tensors received"):
        last.forward((*sent, *sent), data)
    with pytest.raises(FrameFormatError, match="received tensor 0"):
        last.evaluate([sent[0].double()], data)
    with pytest.raises(ValueError, match="only the last stage has none"):
        first.backward()
    last.forward(sent, data)
    with pytest.raises(ValueError, match="2 gradients for 1"):
        last.backward([torch.ones(()), torch.ones(())])


def test_stages_compute_in_the_precision_of_the_terms() -> None:
    case, package = captured("mlp")
    stages = split(package, stages=2, terms=Terms(precision="bf16"))
    assert all(isinstance(stage._computation, MixedComputation) for stage in stages)
    loss, exact = forward(stages, fields(case)), forward(split(package, stages=2), fields(case))
    assert loss.dtype == torch.float32
    assert not torch.equal(loss, exact)
    assert torch.allclose(loss, exact, rtol=0.05)
    backward(stages)
    assert all(gradient.dtype == torch.float32 for gradient in gradients(stages).values())


class FrozenNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)))


def test_statistics_of_a_frozen_norm_are_constants() -> None:
    torch.manual_seed(0)
    model = FrozenNorm().train()
    model.norm.eval()
    x, y = torch.randn(4, 6), torch.randn(4, 2)
    package = capture(model, (x,), loss=nn.functional.mse_loss, example_labels=(y,))
    assert not package.program.mutated_slots
    assert capture(FrozenNorm(), (x,), loss=nn.functional.mse_loss, example_labels=(y,)).program.mutated_slots
    stages = split(package, range(1, len(package.layers)))
    assert not any(stage.program.mutable_buffers for stage in stages)
    assert "norm.running_mean" in {leaf.name for leaf in package.evaluation.buffers}
    assert torch.equal(stages[-1].evaluate(_sent(stages, x, y), {"x0": x, "y0": y})[0], _loss(package, x, y))


def _sent(stages: list[Stage], x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    carried: tuple[Tensor, ...] = ()
    for stage in stages[:-1]:
        carried = stage.evaluate(carried, {"x0": x, "y0": y})
    return carried


def _loss(package: Package, x: Tensor, y: Tensor) -> Tensor:
    return package.evaluate({"x0": x, "y0": y}).loss


def test_no_gradient_flows_by_itself() -> None:
    case, package = captured("mlp")
    (stage,) = split(package, [])
    assert not stage.forward((), fields(case))[0].requires_grad
    assert stage.gradients == {}
