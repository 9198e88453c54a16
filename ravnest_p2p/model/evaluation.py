"""The second graph of a package: the model in eval mode, from data fields to loss and outputs.

Problem: whether dropout drops and which statistics BatchNorm takes is baked into a graph, so what trains
cannot evaluate. Solution: a graph of its own over the same weights, by name. It changes nothing, and what
training changes (parameters, running statistics) stands in `params`, since it belongs to one stage; what
stays may be held by any. A file from a stranger has to agree with the train program on all that both read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ravnest_p2p.core.errors import ConfigError
from ravnest_p2p.model.compute import Computation
from ravnest_p2p.model.node import Leaf, leaf_json, node_json
from ravnest_p2p.model.parse import (
    Limits,
    analyse_within,
    check_form,
    items_of,
    name_of,
    need,
    parse,
    read_parts,
    whole_of,
)
from ravnest_p2p.model.program import Graph, Program
from ravnest_p2p.model.stage_programs import Excerpt, excerpt
from ravnest_p2p.model.stranger import read_ordinary

FORMAT = "ravnest-evaluation/1"
MAX_OUTPUTS = 4096

_KEYS = {"format", "inputs", "params", "buffers", "nodes", "loss", "outputs"}


class Evaluation(NamedTuple):
    """What a model makes of one micro-batch in eval mode.

    Attributes:
        loss: scalar.
        outputs: the model's output tensors: "output" where it is one, else by key, field or position, such
            as "logits" or "hidden_states.0".
    """

    loss: Tensor
    outputs: dict[str, Tensor]


@dataclass(frozen=True)
class EvalProgram(Graph):
    """The captured evaluation of one micro-batch.

    Attributes:
        params: all that it reads of what training changes: parameters and state.
        buffers: constants, frozen parameters, and tensors that training does not use.
        loss: slot of the scalar loss.
        outputs: name and slot of each tensor of the model's output, in order.
    """

    trains = False

    loss: int
    outputs: tuple[tuple[str, int], ...]

    @property
    def results(self) -> tuple[int, ...]:
        """Loss, then outputs."""
        return (self.loss, *(slot for _, slot in self.outputs))

    def named(self, results: Sequence[Tensor]) -> Evaluation:
        """Give tensors in the order of `results` their names."""
        loss, *outputs = results
        return Evaluation(loss, dict(zip((name for name, _ in self.outputs), outputs, strict=True)))

    def whole(self) -> Excerpt:
        """All of it as one stage."""
        return excerpt(self, 0, len(self.nodes), (), self.results)

    def run(self, weights: Mapping[str, Tensor], data: Mapping[str, Tensor], seed: int = 0) -> Evaluation:
        """Evaluate one micro-batch on the CPU; see `Package.evaluate`."""
        for leaf in self.params + self.buffers:
            held = weights[leaf.name]
            if (tuple(held.shape), held.dtype) != (leaf.shape, leaf.spec.torch_dtype):
                raise ConfigError(
                    f"weight {leaf.name!r} is {tuple(held.shape)} {held.dtype}, not {leaf.shape} {leaf.dtype}"
                )
        results = EvalComputation(self.whole()).forward(weights, weights, (), data, seed)
        return self.named([tensor.detach() for tensor in results])

    def to_json(self) -> bytes:
        """Canonical bytes: equal evaluations give equal bytes."""
        document = {
            "format": FORMAT,
            "inputs": [leaf_json(leaf) for leaf in self.inputs],
            "params": [leaf_json(leaf) for leaf in self.params],
            "buffers": [leaf_json(leaf) for leaf in self.buffers],
            "nodes": [node_json(node) for node in self.nodes],
            "loss": self.loss,
            "outputs": [list(output) for output in self.outputs],
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


class EvalComputation(Computation):
    """Executes one stage's share of an evaluation, without gradients.

    Parameters are marked as wanting them all the same, as those of the user's model are: by that mark torch
    chooses between ways to multiply, whose last bits differ.
    """

    def forward(
        self,
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        received: Sequence[Tensor],
        data: Mapping[str, Tensor],
        seed: int,
    ) -> tuple[Tensor, ...]:
        """See `Computation.forward`."""
        with torch.no_grad():
            return super().forward(params, buffers, received, data, seed)

    def _filled(
        self,
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        received: Sequence[Tensor],
        data: Mapping[str, Tensor],
    ) -> list[Any]:
        slots = super()._filled(params, buffers, received, data)
        for slot, leaf in enumerate(self.stage.program.leaves):
            if leaf.kind == "param" and slots[slot] is not None:
                slots[slot] = slots[slot].detach().requires_grad_()
        return slots


def parse_evaluation(data: bytes, program: Program, limits: Limits | None = None) -> EvalProgram:
    """Read bytes from a stranger, with the walls of `parse_program`, and the program that they go with.

    Raises:
        PackageError: the bytes are no evaluation that could run here, or not one of this program (remote's
            fault).
    """

    bounded = limits or Limits()

    def read(document: Any) -> EvalProgram:
        check_form(document, _KEYS, FORMAT)
        kinds = {"param", "buffer"}, {"buffer", "frozen", "param"}
        inputs, params, buffers, nodes, count = read_parts(document, *kinds, bounded)
        loss = whole_of(document["loss"], 0, count, "loss")
        outputs = []
        for item in items_of(document["outputs"], MAX_OUTPUTS, "outputs"):
            need(isinstance(item, list) and len(item) == 2, "an output is not [name, slot]")
            outputs.append((name_of(item[0]), whole_of(item[1], 0, count, "an output")))
        need(len({name for name, _ in outputs}) == len(outputs), "two outputs have one name")
        evaluation = EvalProgram(inputs, params, buffers, nodes, loss, tuple(outputs))
        check_agreement(evaluation, program)
        analyse_within(evaluation, bounded)
        spec = evaluation.analysis.specs[loss]
        need(spec.shape == () and spec.torch_dtype.is_floating_point, "the loss is not a scalar")
        return evaluation

    return parse(data, bounded, "evaluation", read)


def read_evaluation(
    path: str | os.PathLike[str], program: Program, limits: Limits | None = None
) -> EvalProgram:
    """Evaluation in a file from a stranger.

    Raises:
        PackageError: the file is refused, or the evaluation in it (remote's fault).
    """
    limits = limits or Limits()
    return parse_evaluation(read_ordinary(path, limits.json_bytes), program, limits)


def check_agreement(evaluation: EvalProgram, program: Program) -> None:
    """Refuse an evaluation of another model, or one that would change the model.

    Raises:
        ValueError: says in what they disagree.
    """
    need(evaluation.inputs == program.inputs, "the evaluation takes other inputs than the train step")
    for index, node in enumerate(evaluation.nodes):
        need(not node.mutated(), f"node {index} of the evaluation writes to a buffer")
    known = {leaf.name: leaf for leaf in program.leaves}
    changing = changing_names(program)
    again = {name for group in program.tied for name in group[1:]}
    for leaf in evaluation.params:
        need(leaf.name in changing, f"training does not change {leaf.name!r}, as the evaluation says")
    for leaf in evaluation.buffers:
        need(leaf.name not in changing, f"training changes {leaf.name!r}, a constant of the evaluation")
        need(leaf.name not in again, f"{leaf.name!r} is another name of a tied tensor")
    for leaf in evaluation.params + evaluation.buffers:
        need(known.get(leaf.name, leaf) == leaf, f"{leaf.name!r} is not as in the train step")


def changing_names(program: Program) -> set[str]:
    """Parameters and buffers that training changes."""
    state = {program.leaves[slot].name for slot in program.mutated_slots}
    return state | {leaf.name for leaf in program.params}


def only_evaluated(evaluation: EvalProgram, program: Program) -> tuple[Leaf, ...]:
    """Tensors that training does not use."""
    known = {leaf.name for leaf in program.leaves}
    return tuple(leaf for leaf in evaluation.buffers if leaf.name not in known)
