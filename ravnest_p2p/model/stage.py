"""One stage of a split model, ready to be used: its weights, forward, backward, evaluation.

Problem: a stage as data leaves its caller to copy weights, to tell which tensors want gradients, and to put
those of tied parameters together. Solution: a stage that takes what the one before it sent and gives what
the one after it needs, in both directions, all of it plain tensors that may come over any wire.

    first, last = split(package, stages=2)
    loss = last.forward(first.forward((), data), data)
    first.backward(last.backward())
    torch.optim.SGD([*first.parameters(), *last.parameters()], 0.1).step()
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ravnest_p2p.core.errors import CaptureError
from ravnest_p2p.model.compute import StageComputation
from ravnest_p2p.model.evaluation import EvalComputation
from ravnest_p2p.model.stage_programs import Excerpt, StageProgram


class Stage:
    """One stage with weights of its own.

    Attributes:
        program: what it runs, and what it receives and sends.
        params: trained parameters that it owns, copies of the given ones; each has its gradient in `.grad`.
        buffers: state, of which it holds copies, and constants.
        evaluation: its part of the evaluation, None where the model has none.

    Args:
        computation: of its forward pass.
        weights: at least its parameters and buffers, those of the evaluation included.
    """

    def __init__(
        self,
        computation: StageComputation,
        weights: Mapping[str, Tensor],
        evaluation: Excerpt | None = None,
    ) -> None:
        self.program: StageProgram = computation.stage
        self.evaluation = evaluation
        self._computation = computation
        device, changing = computation.device, set(self.program.mutable_buffers)
        self.params = {n: _copy(weights[n], device).requires_grad_() for n in self.program.params}
        self.buffers = {
            n: _copy(weights[n], device) if n in changing else weights[n].to(device)
            for n in self.program.buffers
        }
        self._constants: dict[str, Tensor] = {}
        self._waiting: deque[tuple[list[Tensor], tuple[Tensor, ...]]] = deque()
        if evaluation is not None:
            self._evaluating = EvalComputation(evaluation, device)
            others = {*evaluation.params, *evaluation.buffers} - self.params.keys() - self.buffers.keys()
            self._constants = {n: weights[n].to(device) for n in others}

    @property
    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers as they are now, by name; not copied."""
        return {name: tensor.detach() for name, tensor in self.params.items()} | self.buffers

    @property
    def gradients(self) -> dict[str, Tensor]:
        """What `backward` has summed so far, by name; a parameter without any is missing."""
        return {name: tensor.grad for name, tensor in self.params.items() if tensor.grad is not None}

    def parameters(self) -> list[Tensor]:
        """What an optimizer of `torch.optim` takes."""
        return list(self.params.values())

    def forward(
        self, received: Sequence[Tensor], data: Mapping[str, Tensor], seed: int = 0
    ) -> tuple[Tensor, ...]:
        """Train on one micro-batch; several may wait for their `backward` at once.

        Args:
            received: what the stage before sent; () on the first.
            data: data fields by name; those that it does not read are ignored.
            seed: of this micro-batch, the same on every stage; decides dropout and the like.
        Returns:
            What the next stage receives, or (loss,) on the last; no gradient flows back by itself.
        Raises:
            FrameFormatError, BlobError: a tensor is missing, or has another shape or dtype.
        """
        wants = [spec.differentiable for spec in self.program.receives]
        inside = [t.detach().contiguous() for t in received]
        for tensor, want in zip(inside, wants, strict=False):
            tensor.requires_grad_(want and tensor.is_floating_point())
        sent = self._computation.forward(self.params, self.buffers, inside, data, seed)
        self._waiting.append((inside, sent))
        return tuple(tensor.detach() for tensor in sent)

    def backward(self, gradients: Sequence[Tensor | None] | None = None) -> list[Tensor | None]:
        """Go back through the micro-batch that was forwarded first of those that wait.

        Gradients of parameters are added to `.grad`. A parameter of a later stage too (a tied one) is among
        what is sent: its gradient comes back with the others, and the sum is the owner's.

        Args:
            gradients: of what was sent, None for those without; left out on the last stage.
        Returns:
            Gradients of what was received, None for those without.
        Raises:
            ValueError: no micro-batch waits, or there is not one gradient for each tensor sent.
        """
        if not self._waiting:
            raise ValueError("no micro-batch waits for its backward pass")
        if gradients is None and not self.program.is_last:
            raise ValueError("give the gradients of what was sent; only the last stage has none")
        received, sent = self._waiting.popleft()
        given = [torch.ones_like(sent[0])] if gradients is None else gradients
        if len(given) != len(sent):
            raise ValueError(f"{len(given)} gradients for {len(sent)} tensors that were sent")
        flowing = [(t, g) for t, g in zip(sent, given, strict=True) if t.requires_grad and g is not None]
        wanted = [*self.params.values(), *(t for t in received if t.requires_grad)]
        if flowing and wanted:
            roots, seeds = zip(*flowing, strict=True)
            torch.autograd.backward(roots, seeds, inputs=wanted)
        return [None if t.grad is None else t.grad.contiguous() for t in received]

    def evaluate(
        self, received: Sequence[Tensor], data: Mapping[str, Tensor], seed: int = 0
    ) -> tuple[Tensor, ...]:
        """Evaluate one micro-batch with the weights as they are now; nothing is changed.

        Args:
            received, data, seed: as for `forward`, from the `evaluate` of the stage before.
        Returns:
            What the next stage receives; on the last the loss, then the outputs that
            `package.evaluation.outputs` names.
        Raises:
            CaptureError: the model has no evaluation.
            FrameFormatError, BlobError: a tensor is missing, or has another shape or dtype.
        """
        if self.evaluation is None:
            raise CaptureError("the model was captured without its evaluation; its package says why")
        held = {**self._constants, **self.weights}
        inside = [tensor.detach().contiguous() for tensor in received]
        sent = self._evaluating.forward(held, held, inside, data, seed)
        return tuple(tensor.detach() for tensor in sent)


def _copy(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.detach().to(device, copy=True)
