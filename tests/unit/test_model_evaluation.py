"""The evaluation of a package: that of eager PyTorch to the last bit, whole, in stages, and from disk."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ravnest_p2p.model import (
    Evaluation,
    Package,
    Stage,
    capture,
    ops,
    split,
)
from tests.unit.model_zoo import Case
from tests.unit.test_model_stages import captured, fields

X, Y = torch.randn(4, 6), torch.randn(4, 2)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.last = nn.Linear(6, 2)


def take(model: nn.Module, loss: Any = F.mse_loss) -> Package:
    return capture(model, (X,), loss=loss, example_labels=(Y,))


def train(stages: list[Stage], data: dict[str, Tensor], steps: int = 2) -> dict[str, Tensor]:
    """Train on stages; returns the weights of all."""
    trained = [p for stage in stages for p in stage.parameters()]
    optimizer = torch.optim.SGD(trained, 0.1)
    for step in range(steps):
        carried: tuple[Tensor, ...] = ()
        for stage in stages:
            carried = stage.forward(carried, data, step)
        back: list[Tensor | None] | None = None
        for stage in reversed(stages):
            back = stage.backward(back)
        optimizer.step()
        optimizer.zero_grad()
    return {name: tensor for stage in stages for name, tensor in stage.weights.items()}


def in_pieces(stages: list[Stage], data: dict[str, Tensor], seed: int = 0) -> tuple[Tensor, ...]:
    carried: tuple[Tensor, ...] = ()
    for stage in stages:
        carried = stage.evaluate([t.contiguous().clone() for t in carried], data, seed)
    return carried


def assert_alike(found: Evaluation, expected: Evaluation) -> None:
    assert torch.equal(found.loss, expected.loss)
    assert found.outputs.keys() == expected.outputs.keys()
    for name, tensor in expected.outputs.items():
        assert torch.equal(found.outputs[name], tensor), name


def eager(case: Case, package: Package, weights: dict[str, Tensor]) -> Evaluation:
    model = copy.deepcopy(case.model).eval()
    model.load_state_dict(package.state_dict(weights), strict=False)
    with torch.no_grad():
        output = model(*case.inputs)
        return Evaluation(case.loss(output, *case.labels), {"output": output})


@pytest.mark.parametrize("name", ["cnn", "residual", "gpt_manual", "gpt_tied"])
def test_trained_weights_are_evaluated_as_by_the_model_itself_whole_and_in_stages(name: str) -> None:
    case, package = captured(name)
    data, layers = fields(case), len(package.layers)
    weights = train(split(package, []), data)
    expected = eager(case, package, weights)
    assert_alike(package.evaluate(data, weights), expected)
    assert not torch.equal(package.evaluate(data).loss, expected.loss)
    for cuts in ([layers // 2], [layers // 3, 2 * layers // 3], range(1, layers)):
        stages = split(package, cuts)
        train(stages, data)
        assert_alike(package.evaluation.named(in_pieces(stages, data)), expected)


def test_stages_hold_what_they_train_and_carry_a_tied_weight() -> None:
    _, package = captured("gpt_tied")
    stages = split(package, [3, 6])
    for stage in stages:
        assert set(stage.evaluation.params) <= {*stage.program.params, *stage.program.mutable_buffers}
    tokens = package.weights["tokens.weight"].shape
    assert "tokens.weight" in stages[0].evaluation.params
    assert all(tokens in [spec.shape for spec in stage.evaluation.receives] for stage in stages[1:])
    for left, right in pairwise(stages):
        assert left.evaluation.sends == right.evaluation.receives


def test_evaluating_changes_nothing() -> None:
    case, package = captured("cnn")
    before = {name: tensor.clone() for name, tensor in package.weights.items()}
    (stage,) = split(package, [])
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    result = package.evaluate(fields(case))
    stage.evaluate((), fields(case))
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in package.weights.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in stage.weights.items())
    assert not result.loss.requires_grad
    assert not stage.gradients


def test_dropout_is_gone_and_statistics_are_state_of_one_stage() -> None:
    _, package = captured("cnn")
    assert not any(node.op in ops.RANDOM_OPS for node in package.evaluation.nodes)
    owned = {leaf.name for leaf in package.evaluation.params}
    assert {"norm1.running_mean", "norm2.running_var", "conv1.weight"} <= owned
    assert "norm1.num_batches_tracked" not in owned
    assert not package.evaluation.mutated_slots


class Pair(NamedTuple):
    mean: Tensor
    others: dict[str, Any]


@dataclass
class Answer:
    logits: Tensor
    extra: Any = None


class Returning(Base):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        h = self.first(x)
        y = self.last(h)
        match self.kind:
            case "list":
                return [y, None, (h, "text")]
            case "named":
                return Pair(y, {"deep": [h]})
            case "mapping":
                return OrderedDict(logits=y, hidden=h)
            case "itself":
                return y, x, self.last.weight
        return Answer(y, {"hidden": h})


@pytest.mark.parametrize(
    ("kind", "loss", "names"),
    [
        ("list", lambda out, y: F.mse_loss(out[0], y), ["0", "2.0"]),
        ("named", lambda out, y: F.mse_loss(out.mean, y), ["mean", "others.deep.0"]),
        ("mapping", lambda out, y: F.mse_loss(out["logits"], y), ["logits", "hidden"]),
        ("itself", lambda out, y: F.mse_loss(out[0], y), ["0", "1", "2"]),
        ("dataclass", lambda out, y: F.mse_loss(out.logits, y), ["logits", "extra.hidden"]),
    ],
)
def test_outputs_have_the_names_that_the_model_gave_them(kind: str, loss: Any, names: list[str]) -> None:
    model = Returning(kind)
    package = take(model, loss)
    result = package.evaluate({"x0": X, "y0": Y})
    assert list(result.outputs) == names
    assert torch.equal(result.outputs[names[0]], model.last(model.first(X)))
    stages = split(package, [1])
    assert_alike(package.evaluation.named(in_pieces(stages, {"x0": X, "y0": Y})), result)


def test_a_model_that_returns_its_loss_gives_the_rest_as_outputs() -> None:
    @dataclass
    class Output:
        loss: Tensor
        logits: Tensor

    class Own(Base):
        def forward(self, x: Tensor, y: Tensor) -> Output:
            logits = self.last(self.first(x))
            return Output(F.mse_loss(logits, y), logits)

    class Bare(Base):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.mse_loss(self.last(self.first(x)), y)

    assert list(take(Own(), None).evaluate({"x0": X, "y0": Y}).outputs) == ["logits"]
    assert take(Bare(), None).evaluate({"x0": X, "y0": Y}).outputs == {}


class WithSpare(Base):
    """Uses a parameter, a buffer and a constant in eval mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)
        self.register_buffer("shift", torch.full((2,), 3.0))
        self.register_buffer("hidden", torch.full((2,), 5.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.first(x))
        if self.training:
            return y * torch.tensor([1.0, 2.0])
        return self.spare(y) + self.shift * self.hidden * torch.tensor([4.0, 5.0])


def test_tensors_of_the_evaluation_alone_are_kept_and_travel(tmp_path: Path) -> None:
    model = WithSpare()
    package = take(model)
    assert {"spare.weight", "shift", "hidden"} <= package.weights.keys()
    expected = F.mse_loss(model.eval()(X), Y)
    data = {"x0": X, "y0": Y}
    assert torch.equal(package.evaluate(data).loss, expected)
    assert torch.equal(in_pieces(split(package, [1]), data)[0], expected)
    package.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "evaluation.safetensors").is_file()
    read = Package.load(tmp_path / "saved")
    assert torch.equal(read.evaluate(data).loss, expected)
    assert package.state_dict().keys() == {"first.weight", "first.bias", "last.weight", "last.bias"}


class Backwards(nn.Module):
    """Goes through its layers in the other order in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm1d(6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for index in range(4) if self.training else reversed(range(4)):
            x = self.norms[index](self.layers[index](x)).tanh()
        return x


@pytest.mark.parametrize("count", [2, 3, 4])
def test_an_evaluation_that_goes_another_way_than_training_is_cut_all_the_same(count: int) -> None:
    torch.manual_seed(0)
    model, label = Backwards(), torch.randn(4, 6)
    package = capture(model, (X,), loss=F.mse_loss, example_labels=(label,))
    data, layers = {"x0": X, "y0": label}, len(package.layers)
    stages = split(package, [layers * s // count for s in range(1, count)])
    weights = train(stages, data)
    assert_alike(package.evaluation.named(in_pieces(stages, data)), package.evaluate(data, weights))
    for stage in stages:
        assert set(stage.evaluation.params) <= {*stage.program.params, *stage.program.mutable_buffers}


class Sampling(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) + torch.randn_like(x)) + torch.rand(2)


class InPlace(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(F.dropout(self.first(x), 0.5, self.training), inplace=True))


def test_what_is_written_in_place_behind_dropout_is_the_same_tensor_in_eval_mode() -> None:
    model = InPlace()
    package = take(model)
    found = package.evaluate({"x0": X, "y0": Y}).outputs["output"]
    assert torch.equal(found, model.eval()(X))


def test_chance_that_stays_in_eval_mode_is_decided_by_the_seed_wherever_it_is_cut() -> None:
    package, data = take(Sampling()), {"x0": X, "y0": Y}
    losses = [package.evaluate(data, seed=seed).loss for seed in (1, 1, 2)]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])
    assert torch.equal(in_pieces(split(package, [1]), data, seed=2)[0], losses[2])


def test_attention_takes_no_shortcut_in_eval_mode() -> None:
    model = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
    x = torch.randn(2, 3, 6)
    package = capture(model, (x,), loss=F.mse_loss, example_labels=(x,))
    assert package.evaluation_refusal == ""
    assert torch.backends.mha.get_fastpath_enabled()
    found = package.evaluate({"x0": x, "y0": x}).outputs["output"]
    assert torch.allclose(found, model.eval()(x), atol=1e-5)
