"""Is each architecture evaluated as eager PyTorch does, and on two, three and four stages as on one?

Both have the weights and running statistics of a model that was trained for some steps after its capture,
and data that the capture has not seen. What the second capture takes is CPU time, beside that of the first.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Goal
from benchmarks.zoo import ARCHITECTURES, UNTIED, Case, make
from benchmarks.zoo.stepping import RATE, same
from ravnest_p2p.model import Evaluation, Package, Stage, capture, split
from ravnest_p2p.model.trace import named_outputs

STEPS = 2
STAGES = (2, 3, 4)
IDENTICAL, DIFFERS = "identical", "differs"


def run(only: tuple[str, ...], quick: bool) -> tuple[dict[str, Any], list[Goal]]:
    """Rows by architecture, and the goals over the 18; variants with an untied head are rows only."""
    rows = {name: check(name) for name in [*ARCHITECTURES, *UNTIED] if not only or name in only}
    counted = [row for name, row in rows.items() if name in ARCHITECTURES]
    cut = [text for row in rows.values() for text in row.get("stages", {}).values()]
    wanted = f">= {len(counted)}"
    eager = sum(row["evaluated"] == IDENTICAL for row in counted)
    everywhere = sum(all(row["stages"].get(str(s)) == IDENTICAL for s in STAGES) for row in counted)
    spent_s = [(row["evaluation_cpu_s"], row["train_cpu_s"]) for row in rows.values()]
    share = sum(more for more, _ in spent_s) / sum(first for _, first in spent_s)
    return rows, [
        Goal("architectures evaluated bit-identical to eager", eager, "architectures", wanted),
        Goal(
            "evaluated bit-identical in 2, 3 and 4 stages", everywhere, "architectures", f">= {len(counted)}"
        ),
        Goal("evaluations in stages that differ", cut.count(DIFFERS), "splits", "<= 0"),
        Goal("CPU time of the second capture over that of the first", share, "times", "<= 1"),
    ]


def check(name: str) -> dict[str, Any]:
    """One architecture: "identical", "differs", or why it cannot be evaluated or cut so."""
    case = make(name)
    _captured(case, evaluation=False)  # what torch imports at the first time is no part of it
    _, train_s = _captured(case, evaluation=False)
    package, both_s = _captured(case, evaluation=True)
    row: dict[str, Any] = {"train_cpu_s": train_s, "evaluation_cpu_s": both_s - train_s}
    if package.evaluation is None:
        return row | {"evaluated": f"refused: {package.evaluation_refusal}", "stages": {}}
    row["nodes"] = len(package.evaluation.nodes)
    row["outputs"] = len(package.evaluation.outputs)
    data = case.at(STEPS).fields()
    stages = split(package, [])
    train(stages, case)
    expected = evaluate_eagerly(case, weights_of(stages))
    found = package.evaluate(data, weights_of(stages))
    row["evaluated"] = IDENTICAL if alike(found, expected) else DIFFERS
    row["stages"] = {str(count): _in_stages(package, case, count, found) for count in STAGES}
    return row


def _captured(case: Case, evaluation: bool) -> tuple[Package, float]:
    begun_s = time.process_time()
    labels = case.labels
    package = capture(case.model, case.inputs, loss=case.loss, example_labels=labels, evaluation=evaluation)
    return package, time.process_time() - begun_s


def _in_stages(package: Package, case: Case, count: int, expected: Evaluation) -> str:
    """The model trained in so many stages, and evaluated there."""
    layers = len(package.layers)
    if layers < count:
        return f"{layers} layers"
    stages = split(package, [layers * s // count for s in range(1, count)])
    train(stages, case)
    carried: tuple[Tensor, ...] = ()
    for stage in stages:
        carried = stage.evaluate(carried, case.at(STEPS).fields())
    assert package.evaluation is not None
    return IDENTICAL if alike(package.evaluation.named(carried), expected) else DIFFERS


def train(stages: list[Stage], case: Case) -> None:
    """A few steps of plain SGD."""
    trained = [tensor for stage in stages for tensor in stage.parameters()]
    for step in range(STEPS):
        data = case.at(step).fields()
        carried: tuple[Tensor, ...] = ()
        for stage in stages:
            carried = stage.forward(carried, data, step)
        back: list[Tensor | None] | None = None
        for stage in reversed(stages):
            back = stage.backward(back)
        optimizer = torch.optim.SGD(trained, RATE)
        optimizer.step()
        optimizer.zero_grad()


def weights_of(stages: list[Stage]) -> dict[str, Tensor]:
    """Of all stages together."""
    return {name: tensor for stage in stages for name, tensor in stage.weights.items()}


def evaluate_eagerly(case: Case, weights: dict[str, Tensor]) -> Evaluation:
    """The model itself in eval mode with these weights, which become its own."""
    case.model.eval()
    last = case.at(STEPS)
    with torch.no_grad():
        held = case.named("parameters") | case.named("buffers")
        for name, tensor in weights.items():
            if name in held:
                held[name].copy_(tensor)
        if last.loss is None:
            output = last.model(*last.inputs, *last.labels)
            outputs = {} if isinstance(output, Tensor) else named_outputs(output)
            loss = outputs.pop("loss", output)
            return Evaluation(loss, outputs)
        output = last.model(*last.inputs)
        return Evaluation(last.loss(output, *last.labels), named_outputs(output))


def alike(a: Evaluation, b: Evaluation) -> bool:
    """Equal to the last bit."""
    return (
        same(a.loss, b.loss)
        and a.outputs.keys() == b.outputs.keys()
        and all(same(tensor, b.outputs[name]) for name, tensor in a.outputs.items())
    )
