"""Prove that a captured program computes what the user's model computes.

Two steps with the same seeds on both sides, an update of the weights between them: a gradient that tracing
lost shows in the first step, a state that it took for a constant in the second. Equality is to the last bit,
or where the model computes otherwise when it is traced, up to rounding (`model.rounding`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ravnest_p2p.core.errors import CaptureError
from ravnest_p2p.model.compute import StageComputation
from ravnest_p2p.model.evaluation import EvalComputation, EvalProgram, Evaluation
from ravnest_p2p.model.explain import place
from ravnest_p2p.model.program import Program
from ravnest_p2p.model.rounding import beyond_rounding, distance, nudge
from ravnest_p2p.model.stage_programs import stage_program
from ravnest_p2p.model.trace import EvalStep, Examples, TrainStep, named_tensors
from ravnest_p2p.model.watch import Watch, graph_of

STEPS = 2
_STEP = 0.01
_LOSS = "the loss"
_GRADIENT = "the gradient of "

Place = tuple[str, int]
"""A result, in words, and the step that it is of."""

_FIX = (
    "usual causes: a Python counter or global in forward(), a tensor kept from the step before, or a "
    "gradient taken inside; write it with plain tensor operations and buffers"
)


class Side(NamedTuple):
    """What the user's model computed in one step: results by what they are, and names of tensors in whose
    place forward() put others."""

    results: dict[str, Tensor | None]
    reassigned: list[str]


def check_parity(
    step: TrainStep,
    fresh: Callable[[], TrainStep],
    program: Program,
    weights: Mapping[str, Tensor],
    inputs: tuple[Tensor, ...],
    labels: tuple[Tensor, ...],
    data: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], bool]:
    """Run two steps on both sides and compare loss, gradients and buffers.

    Args:
        step: the user's model and loss, copied; it is changed.
        fresh: makes another such copy.
        data: the inputs and labels by field name.
    Returns:
        The program's weights after both steps, which `step` has now as well; and whether all was equal to the
        last bit, else it differed no more than by rounding.
    Raises:
        CaptureError: they differ; names the module and what differs.
    """
    computation = StageComputation(stage_program(program, 0, len(program.layer_bounds)), reseed=False)
    params = {leaf.name: weights[leaf.name].clone().requires_grad_() for leaf in program.params}
    buffers = {leaf.name: weights[leaf.name].clone() for leaf in program.buffers}
    aliases = {_gradient(name) for group in program.tied for name in group if name not in params}
    differences = _Differences()
    for index, own in enumerate(_training(step, params, inputs, labels)):
        torch.manual_seed(index)
        (loss,) = computation.forward(params, buffers, (), _rolled(data, index), 0)
        grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        found: dict[str, Tensor | None] = {_LOSS: loss.detach()}
        found |= {_gradient(name): grad for name, grad in zip(params, grads, strict=True)}
        found |= {_buffer(name): tensor for name, tensor in buffers.items()}
        for what, expected in own.results.items():
            if what in found or (what.startswith(_GRADIENT) and what not in aliases):
                differences.compare(what, found.get(what), expected, index, own.reassigned)
        _update(params, own.results)

    def results(trial: int | None) -> dict[Place, Tensor]:
        copied = fresh()
        if trial is not None:
            nudge(named_tensors(copied).values(), trial)
        return _kept(_training(copied, params, inputs, labels), differences.distances)

    differences.require_rounding(results)
    return {name: tensor.detach() for name, tensor in params.items()} | buffers, differences.none


def _training(
    step: TrainStep, updated: Collection[str], inputs: tuple[Tensor, ...], labels: tuple[Tensor, ...]
) -> Iterator[Side]:
    """Two steps of the user's model; the named weights are moved after each."""
    tensors = named_tensors(step)
    trained = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    for index in range(STEPS):
        torch.manual_seed(index)
        with Watch(step.model, settled=index > 0) as watch:
            loss = step(tuple(_roll(t, index) for t in inputs), tuple(_roll(t, index) for t in labels))
        _check_leaves(loss, tensors)
        grads = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        results: dict[str, Tensor | None] = {_LOSS: loss.detach()}
        results |= {_gradient(name): grad for name, grad in zip(trained, grads, strict=True)}
        results |= {_buffer(name): t.detach() for name, t in tensors.items() if name not in trained}
        yield Side(results, watch.reassigned)
        _update({name: tensors[name] for name in updated}, results)


def _update(tensors: Mapping[str, Tensor], results: Mapping[str, Tensor | None]) -> None:
    with torch.no_grad():
        for name, tensor in tensors.items():
            gradient = results[_gradient(name)]
            if gradient is not None:
                tensor -= _STEP * gradient


def _kept(sides: Iterator[Side], places: Collection[Place]) -> dict[Place, Tensor]:
    """Copies of the results at these places."""
    return {
        (what, index): tensor.clone()
        for index, side in enumerate(sides)
        for what, tensor in side.results.items()
        if (what, index) in places and tensor is not None
    }


def _gradient(name: str) -> str:
    return f"{_GRADIENT}{name!r}"


def _buffer(name: str) -> str:
    return f"the buffer {name!r}"


def check_evaluation(
    step: EvalStep,
    evaluation: EvalProgram,
    weights: Mapping[str, Tensor],
    examples: Examples,
    expected: Evaluation,
) -> None:
    """Compare an evaluation with the model's own, on the examples and on other data.

    Args:
        step: the user's model and loss, copied, in eval mode; `weights` are its own by name.
        expected: what it gave for the examples themselves, with torch's generator seeded by 0.
    Raises:
        CaptureError: they differ; names the module and what differs.
    """
    computation = EvalComputation(evaluation.whole(), reseed=False)
    inputs, labels = examples
    data = {f"x{i}": t for i, t in enumerate(inputs)} | {f"y{i}": t for i, t in enumerate(labels)}
    differences = _Differences()
    for index in range(STEPS):
        torch.manual_seed(index)
        found = evaluation.named(computation.forward(weights, weights, (), _rolled(data, index), 0))
        own = Side(_evaluated(expected), []) if not index else _evaluating(step, examples, index)
        results = _evaluated(found)
        if results.keys() != own.results.keys():
            raise CaptureError("the model: in eval mode it returns other tensors from run to run")
        for what, tensor in own.results.items():
            differences.compare(what, results[what], tensor, index, own.reassigned)

    def results_of(trial: int | None) -> dict[Place, Tensor]:
        copied = copy.deepcopy(step)
        if trial is not None:
            nudge(named_tensors(copied).values(), trial)
        sides = (_evaluating(copied, examples, index) for index in range(STEPS))
        return _kept(sides, differences.distances)

    differences.require_rounding(results_of)


def _evaluating(step: EvalStep, examples: Examples, index: int) -> Side:
    torch.manual_seed(index)
    with Watch(step.model, settled=index > 0) as watch:
        found = step.evaluated(*(tuple(_roll(t, index) for t in group) for group in examples))
    return Side(_evaluated(found), watch.reassigned)


def _evaluated(found: Evaluation) -> dict[str, Tensor | None]:
    outputs = {f"the output {name} in eval mode": tensor for name, tensor in found.outputs.items()}
    return {f"{_LOSS} in eval mode": found.loss, **outputs}


def _check_leaves(loss: Tensor, eager: Mapping[str, Tensor]) -> None:
    """Refuse trained tensors from outside of the model, which tracing takes for constants."""
    known = {id(tensor) for tensor in eager.values()}
    for function in graph_of(loss):
        variable = getattr(function, "variable", None)
        if variable is not None and id(variable) not in known:
            raise CaptureError(
                f"the model: a trained tensor of shape {tuple(variable.shape)} is no parameter of the model; "
                "register it as nn.Parameter of one of its modules"
            )


def _rolled(data: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """Copies of the fields; for the second step with the samples in another order."""
    return {name: _roll(tensor, index) for name, tensor in data.items()}


def _roll(tensor: Tensor, index: int) -> Tensor:
    return tensor.roll(index, 0) if tensor.dim() else tensor.clone()


class _Differences:
    """Where two sides were not equal to the last bit.

    Attributes:
        distances: between them, by place.
    """

    def __init__(self) -> None:
        self.distances: dict[Place, float] = {}
        self._errors: dict[Place, CaptureError] = {}

    @property
    def none(self) -> bool:
        return not self.distances

    def compare(
        self, what: str, found: Tensor | None, expected: Tensor | None, index: int, reassigned: list[str]
    ) -> None:
        """Note a difference; raise what no rounding explains."""
        if found is None and expected is None:
            return
        gap, far = "in being there at all", float("inf")
        if found is not None and expected is not None:
            if _equal(found, expected):
                return
            far = distance(found, expected)
            gap = f"by up to {(found.double() - expected.double()).abs().max().item():.3g}"
        error = CaptureError(_explained(what, gap, index, reassigned))
        if far == float("inf"):
            raise error
        self.distances[what, index] = far
        self._errors[what, index] = error

    def require_rounding(self, results: Callable[[int | None], Mapping[Place, Tensor]]) -> None:
        """Raise the first difference that is more than rounding; see `beyond_rounding`."""
        place = beyond_rounding(self.distances, results) if self.distances else None
        if place is not None:
            raise self._errors[place]


def _equal(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and torch.equal(found.nan_to_num(7e6), expected.nan_to_num(7e6))


def _explained(what: str, gap: str, index: int, reassigned: list[str]) -> str:
    if reassigned:
        path, _, name = reassigned[0].rpartition(".")
        return (
            f"{place(path)}: forward() puts another tensor in the place of {name!r} and reads it in the next "
            f"step; register it by register_buffer() and write in place: self.{name}.copy_(…)"
        )
    return (
        f"{_module(what)}: {what} of the captured program differs {gap} from the model's own "
        f"in step {index + 1}; {_FIX}"
    )


def _module(what: str) -> str:
    name = what.split("'")[1] if "'" in what else ""
    return place(name.rpartition(".")[0])
