"""Capture a model whose weights are nowhere: 7 billion parameters on a laptop, in seconds.

Problem: whether and how a model can be split is wanted before anybody has the memory for it. Solution: the
model stands on torch's meta device (shapes without numbers), each of its tensors is exchanged for a fake CPU
tensor, and the same tracing and lowering as for a real model give the same program. What needs numbers is
left out: the parity check against eager, and the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ravnest_p2p.core.errors import CaptureError, PackageError
from ravnest_p2p.model.capture import finished, randomness_restored
from ravnest_p2p.model.package import Package
from ravnest_p2p.model.program import Program
from ravnest_p2p.model.trace import TrainStep, trace

_REFUSAL = "the model was captured by shapes alone"


def is_weightless(model: nn.Module) -> bool:
    """Whether any parameter or buffer is on the meta device."""
    return any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def capture_without_weights(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    *,
    loss: Callable[..., Tensor] | None,
    example_labels: tuple[Tensor, ...] = (),
) -> Package:
    """Capture one train step by shapes alone; for analysis and planning, not for training.

    Nothing is compared with eager, so a model that is captured wrongly shows only when it is submitted.
    Model, random state and examples are left as they were, and no copy of a weight is made.

    Args:
        model: on the meta device (`with torch.device("meta"): …`), or anywhere.
        example_inputs, example_labels, loss: as for `capture`; only shapes and dtypes are read.
    Returns:
        The program, checked as other peers would; `weights` are empty.
    Raises:
        CaptureError: the model cannot travel; names the module, the cause and the fix.
    """
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    with mode:
        stand_ins = {id(tensor): _fake(tensor) for tensor in _tensors(model, loss)}
        inputs = tuple(_fake(tensor) for tensor in example_inputs)
        labels = tuple(_fake(tensor) for tensor in example_labels)
    try:
        copied, copied_loss = copy.deepcopy((model, loss), dict(stand_ins))
    except Exception as error:
        raise CaptureError(
            f"the model cannot be copied ({error}); keep no computed tensors as attributes between steps"
        ) from error
    if not model.training:
        copied.train()
    with randomness_restored():
        traced = finished(trace(TrainStep(copied, copied_loss), inputs, labels, {}, "constant"))
    # Whether every cut leaves every bit can be told with weights only; here all places count.
    program = replace(traced, layer_bounds=traced.cut_map.bounds())
    try:
        return Package(Program.from_json(program.to_json()), {}, evaluation_refusal=_REFUSAL)
    except PackageError as error:
        raise CaptureError(f"other peers would refuse the captured program: {error}") from error


def _tensors(model: nn.Module, loss: object) -> Iterator[Tensor]:
    """Parameters, buffers, and tensors without numbers that are kept as plain attributes."""
    roots = [model, loss] if isinstance(loss, nn.Module) else [model]
    for root in roots:
        yield from root.parameters()
        yield from root.buffers()
        for module in root.modules():
            held = vars(module).values()
            yield from (value for value in held if isinstance(value, Tensor) and value.is_meta)


def _fake(tensor: Tensor) -> Tensor:
    made = torch.empty_like(tensor, device="cpu", requires_grad=False)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(made, requires_grad=tensor.requires_grad)
    return made
