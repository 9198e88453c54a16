"""Capture the evaluation of a model that trains: eval mode, no gradients, weights shared by name.

The model is looked at after the two training steps of the parity check, so that weights and running
statistics are others than those it was traced with, and nothing is copied or trained for this alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from ravnest_p2p.core.errors import CaptureError, PackageError
from ravnest_p2p.model.builder import Value
from ravnest_p2p.model.evaluation import (
    EvalProgram,
    Evaluation,
    changing_names,
    only_evaluated,
    parse_evaluation,
)
from ravnest_p2p.model.explain import failed
from ravnest_p2p.model.parity import check_evaluation
from ravnest_p2p.model.program import Program
from ravnest_p2p.model.trace import EvalStep, Examples, Traced, TrainStep, modules_of, trace
from ravnest_p2p.model.watch import Watch


def capture_evaluation(
    fresh: TrainStep,
    trained: TrainStep,
    program: Program,
    weights: Mapping[str, Tensor],
    examples: Examples,
    owned: Mapping[int, str],
) -> tuple[EvalProgram, dict[str, Tensor]]:
    """The evaluation, compared with eager to the last bit, and the tensors that it alone uses.

    Args:
        fresh: the user's model and loss, copied; it is traced.
        trained: another copy, after some training; its tensors that training uses are `weights`.
        owned: as for `trace`.
    Raises:
        CaptureError: the model cannot be evaluated as it is trained; names the module, the cause and the fix.
    """
    with torch.no_grad(), _plain_attention():
        eager = EvalStep(trained)
        expected = _try_eagerly(eager, examples)
        traced = trace(EvalStep(fresh), *examples, owned, "evaluation")
        evaluation = _finished(traced, program, list(expected.outputs))
        try:
            evaluation = parse_evaluation(evaluation.to_json(), program)
        except PackageError as error:
            raise CaptureError(f"other peers would refuse the captured evaluation: {error}") from error
        more = {
            leaf.name: traced.tensors[leaf.name].detach().clone(memory_format=torch.contiguous_format)
            for leaf in only_evaluated(evaluation, program)
        }
        check_evaluation(eager, evaluation, {**weights, **more}, examples, expected)
    return evaluation, more


def _try_eagerly(step: EvalStep, examples: Examples) -> Evaluation:
    """The model's own evaluation, with torch's generator seeded by 0."""
    inputs, labels = (tuple(t.clone() for t in group) for group in examples)
    torch.manual_seed(0)
    with Watch(step.model, settled=False):
        try:
            return step.evaluated(inputs, labels)
        except CaptureError:
            raise
        except Exception as error:
            raise CaptureError(f"in eval mode {failed(error, modules_of(step))}") from error


def _finished(traced: Traced, program: Program, names: list[str]) -> EvalProgram:
    changing = changing_names(program)
    if len(traced.results) != 1 + len(names) or not all(isinstance(v, Value) for v in traced.results):
        raise CaptureError("the model: in eval mode it returns other tensors when it is traced")
    parts = traced.builder.pruned(traced.results, lambda leaf: leaf.name in changing)
    for node in parts.nodes:
        for slot in node.mutated():
            name = (parts.inputs + parts.params + parts.buffers)[slot].name
            raise CaptureError(
                f"the model: in eval mode forward() writes to the buffer {name!r}; "
                "write to it where self.training only"
            )
    loss, *outputs = parts.results
    named = tuple(zip(names, outputs, strict=True))
    return EvalProgram(parts.inputs, parts.params, parts.buffers, parts.nodes, loss, named)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """nn.TransformerEncoder without the fused operations that it takes in eval mode; they may not travel."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
