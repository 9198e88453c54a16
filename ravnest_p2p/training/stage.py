"""One stage of an asynchronous pipeline: forward, backward, speculate, step.

Problem: without a bubble, micro-batches of the next batch start before this batch's update. Run on the old
weights they bring stale gradients; run on weights that change under their graph they bring wrong ones.
Solution (docs: asynchronous training): batch u is the micro-batches [u·m, (u+1)·m), decided by index and
never by the clock. Those that have to start early (k = i − u·m < τ, "crossing") run forward and backward
through ŵ, the optimizer's own next step computed early; all others through the live weights. Every gradient
goes into the accumulator of its own batch, and the ordinary optimizer steps when the batch is complete.
τ = 0 is exactly synchronous training. ŵ of float32 weights is kept in bfloat16 (`halved`), but of those that
cross a cut in full. Other ways to treat the crossing ones (`core.pipeline.correction`) differ in ŵ alone.

By construction no graph on live weights is alive when they are stepped in place; here that is checked. Graphs
in flight may also hold buffers. torch's batch_norm updates its statistics unseen by autograd, but a buffer
that is written in place by ordinary operations would break the graphs before, so from the second forward on
each gets its own copy; the first, with nothing else in flight, tells which buffers those are.

An output may be a live parameter itself, for later stages that use it too (a tied embedding). Its bytes may
still wait to be sent when the weights are stepped in place, so what goes out is a copy, one for each version
of the weights. What flows back for it is one more gradient of that parameter.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ravnest_p2p.core.errors import OurFault, PackageError, PlanError, TensorError
from ravnest_p2p.core.optimizers import learning_rate
from ravnest_p2p.core.pipeline.correction import CORRECTIONS, NONE, SPECULATIVE, STASH
from ravnest_p2p.core.types import OptimizerSpec
from ravnest_p2p.training.halved import Halved, halved
from ravnest_p2p.training.moving import through_live
from ravnest_p2p.training.optimizer import OptimizerState, StageOptimizer, early_step


class Computation(Protocol):
    """What one stage computes: differentiable, and a function of its arguments alone."""

    def forward(
        self,
        params: Mapping[str, Tensor],
        buffers: dict[str, Tensor],
        received: Sequence[Tensor],
        data: Mapping[str, Tensor],
        seed: int,
    ) -> tuple[Tensor, ...]:
        """Outputs for the next stage, or (loss,) with a scalar loss on the last.

        Args:
            buffers: BatchNorm statistics and the like; updated here, once a call, in place or by new entries.
            received: outputs of the stage before; empty on the first.
            data: this stage's fields for the micro-batch, by graph input name.
            seed: of every random node.
        """
        ...


@dataclass(frozen=True, slots=True)
class Forwarded:
    """What a forward leaves.

    Attributes:
        outputs: for the next stage: detached, contiguous, on the CPU, never written to again; empty on the
            last stage. A parameter that did not change since the forward before is the same memory.
        loss: on the last stage.
        version: of the weights that the forward used; for ŵ that of the weights it was stepped from.
    """

    outputs: tuple[Tensor, ...]
    loss: float | None
    version: int


@dataclass(slots=True)
class _Flight:
    leaves: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    weights: Mapping[str, Tensor]
    speculative: bool


class StageTrainer:
    """Trains one stage; every method is called from the one compute thread.

    Micro-batches are numbered from 0 within the generation, and are forwarded and taken back in that order.

    Args:
        computation: what the stage computes.
        params, buffers: this stage's, by name, on the device to compute on; taken over, not copied. Every
            floating-point parameter is trained.
        microbatches_per_update: m.
        staleness: τ of this stage, at most m; at most τ + 1 micro-batches are in flight.
        version: updates that the weights already contain; the learning rate follows it.
        optimizer_state: slots by parameter name, as `optimizer_state()` gives them.
        matrices: names of the model's hidden matrices, which Muon moves; others of the model may be among
            them.
        device: to compute on; where None, that of the parameters.
        correction: what crossing micro-batches run on, of `CORRECTIONS`.
        halve: keep ŵ in bfloat16 where the weights are float32.
    Attributes:
        device: that it computes on.
    Raises:
        PlanError: m or τ out of bounds, or an unknown correction.
        ConfigError: the optimizer does not exist or refuses its numbers.
        BlobError: the optimizer state does not fit the parameters.
    """

    def __init__(
        self,
        computation: Computation,
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        *,
        optimizer: OptimizerSpec,
        microbatches_per_update: int,
        staleness: int,
        is_last: bool,
        version: int = 0,
        optimizer_state: OptimizerState | None = None,
        matrices: Collection[str] = (),
        device: torch.device | None = None,
        correction: str = SPECULATIVE,
        halve: bool = True,
    ) -> None:
        if correction not in CORRECTIONS:
            raise PlanError(f"staleness correction {correction!r:.40}")
        if not 0 <= staleness <= microbatches_per_update or microbatches_per_update < 1:
            raise PlanError(f"staleness {staleness} with {microbatches_per_update} micro-batches an update")
        self.params = {n: p.detach().requires_grad_(p.is_floating_point()) for n, p in params.items()}
        self.buffers = {n: b.detach() for n, b in buffers.items()}
        self._computation = computation
        self._spec = optimizer
        self._m = microbatches_per_update
        self._staleness = staleness
        self._is_last = is_last
        self._correction = correction
        self._halve = halve
        self._version = version
        self._trained = {n: p for n, p in self.params.items() if p.requires_grad}
        found = (p.device for p in self.params.values())
        self.device = device or next(found, torch.device("cpu"))
        self._matrices = frozenset(matrices)
        self._optimizer = StageOptimizer(optimizer, self._trained, self._matrices)
        self._optimizer.restore(optimizer_state or {})
        self._updates = 0
        self._forwarded = 0
        self._done = 0
        self._flights: dict[int, _Flight] = {}
        self._sums: dict[int, dict[str, Tensor]] = {}
        self._early: dict[int, dict[str, Tensor]] = {}
        self._rewritten: set[str] = set()
        self._carried: set[str] = set()
        self._sent: dict[str, tuple[int, Tensor]] = {}
        self._leaves: dict[int, tuple[weakref.ref[Tensor], weakref.ref[Tensor]]] = {}

    @property
    def version(self) -> int:
        """Updates that the live weights contain."""
        return self._version

    @property
    def in_flight(self) -> int:
        """Micro-batches forwarded and not yet taken back."""
        return len(self._flights)

    @property
    def param_bytes(self) -> int:
        """Bytes of the live parameters, without ŵ, accumulators and optimizer state."""
        return sum(p.numel() * p.element_size() for p in self.params.values())

    @property
    def learning_rate(self) -> float:
        """Of the next update."""
        return learning_rate(self._spec, self._version)

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """Slots by parameter name, sharing memory with the optimizer; parameters never stepped are absent."""
        return self._optimizer.state()

    def forward(
        self, i: int, received: Sequence[Tensor], data: Mapping[str, Tensor], seed: int, *, speculative: bool
    ) -> Forwarded:
        """Run micro-batch `i` and keep its graph until `backward(i)`.

        Args:
            received: outputs of the stage before, in order; their memory belongs to the graph from here on. A
                tensor that came with the micro-batch before, too, is brought to the device once.
            data: this stage's fields, by graph input name.
            speculative: run on ŵ; has to agree with the index: max(0, i−τ)//m < i//m.
        Raises:
            OurFault: out of order, over the window, or on weights that the index does not ask for.
            PackageError: the last stage computes something other than one scalar loss.
        """
        batch = i // self._m
        weights = self._weights_for(i, batch, speculative)
        for name in self._rewritten:
            self.buffers[name] = self.buffers[name].clone()
        before = {name: (buffer, buffer._version) for name, buffer in self.buffers.items()}
        leaves = tuple(self._leaf(place, tensor) for place, tensor in enumerate(received))
        inputs = {name: tensor.to(self.device) for name, tensor in data.items()}
        moving = speculative and self._correction == NONE
        with torch.enable_grad(), through_live(self._trained.values()) if moving else nullcontext():
            outputs = tuple(self._computation.forward(weights, self.buffers, leaves, inputs, seed))
        self._rewritten |= {name for name, (buffer, count) in before.items() if buffer._version != count}
        for name, buffer in self.buffers.items():
            self.buffers[name] = buffer.detach()
        if self._is_last and (len(outputs) != 1 or outputs[0].numel() != 1):
            shapes = [tuple(output.shape) for output in outputs]
            raise PackageError(f"the last stage has to compute one scalar loss, not {shapes}")
        self._flights[i] = _Flight(leaves, outputs, weights, speculative)
        self._forwarded += 1
        if i % self._m == self._staleness - 1:
            self._early.pop(batch, None)
        version = self._version - self._updates + batch - speculative
        if self._is_last:
            return Forwarded((), float(outputs[0].detach()), version)
        return Forwarded(tuple(self._outgoing(output) for output in outputs), None, version)

    def backward(self, i: int, gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """Take micro-batch `i` back: gradients for what it received; its weights' go into batch i//m's sum.

        The loss is seeded with 1/m, so the sum is that of plain PyTorch's `(loss / m).backward()`.

        Args:
            gradients: for each output in order, None where it has none; empty on the last stage.
        Returns:
            For each received tensor: gradient of its shape and dtype, contiguous, on the CPU, or None.
        Raises:
            OurFault: not the oldest micro-batch in flight.
            TensorError: another number, shape or dtype of gradients than the outputs have; nothing changed.
        """
        if i != self._done or i not in self._flights:
            raise OurFault(
                f"backward of micro-batch {i} where {self._done} is next, in flight {self.in_flight}"
            )
        flight = self._flights[i]
        roots, seeds = self._roots(flight.outputs, gradients)
        del self._flights[i]
        self._done += 1
        names = [n for n in self._trained if flight.weights[n].requires_grad]
        wanted = [leaf for leaf in flight.leaves if leaf.requires_grad]
        found: list[Tensor | None] = [None] * (len(wanted) + len(names))
        if roots and found:
            sources = wanted + [flight.weights[n] for n in names]
            found = list(torch.autograd.grad(roots, sources, seeds, allow_unused=True))
        self._accumulate(i // self._m, dict(zip(names, found[len(wanted) :], strict=True)))
        back = iter(found[: len(wanted)])
        given = [next(back) if leaf.requires_grad else None for leaf in flight.leaves]
        return tuple(None if g is None else g.detach().to("cpu").contiguous() for g in given)

    def speculate(self) -> None:
        """Make ready what the next batch's crossing micro-batches run on; see `early_step` for ŵ's formulas.

        Called when n = m − τ micro-batches of the current batch have been taken back. The live weights and
        the optimizer's state stay as they are.

        Raises:
            OurFault: called at another moment, or on a stage without staleness.
        """
        n = self._m - self._staleness
        if self._staleness == 0 or self._done != self._updates * self._m + n:
            raise OurFault(
                f"speculate after {self._done} micro-batches and {self._updates} updates, "
                f"with m = {self._m} and staleness {self._staleness}"
            )
        self._early[self._updates + 1] = {**self.params, **self._crossing_weights(n)}

    def _crossing_weights(self, n: int) -> dict[str, Tensor]:
        if self._correction == NONE:
            return {}
        if self._correction == STASH:
            return {name: p.detach().clone().requires_grad_() for name, p in self._trained.items()}
        moved = early_step(
            self._spec,
            self._trained,
            self._sums.get(self._updates, {}),
            self.optimizer_state(),
            version=self._version,
            done=n,
            of=self._m,
            matrices=self._matrices,
            keep=self._kept,
        )
        still = {n: self._kept(n, p.detach().clone()) for n, p in self._trained.items() if n not in moved}
        return {name: weight.requires_grad_() for name, weight in {**moved, **still}.items()}

    def _kept(self, name: str, weight: Tensor) -> Tensor:
        return halved(weight) if self._halve and name not in self._carried else weight

    def step(self) -> None:
        """Apply the complete current batch to the live weights: clip over this stage, then the optimizer.

        Raises:
            OurFault: the batch is incomplete, or a graph on the live weights is still alive.
        """
        if self._done < (self._updates + 1) * self._m:
            raise OurFault(f"step {self._updates} after only {self._done} micro-batches of {self._m} each")
        live = [i for i, flight in self._flights.items() if not flight.speculative]
        if live:
            raise OurFault(
                f"step {self._updates} while micro-batches {live} are in flight on the live weights"
            )
        sums = self._sums.pop(self._updates, {})
        for name, weight in self._trained.items():
            weight.grad = sums.get(name)
        if self._spec.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._trained.values(), self._spec.clip_norm)
        self._optimizer.step(self._version)
        self._updates += 1
        self._version += 1

    def _weights_for(self, i: int, batch: int, speculative: bool) -> Mapping[str, Tensor]:
        if i != self._forwarded:
            raise OurFault(f"forward of micro-batch {i} where {self._forwarded} is next")
        if self.in_flight > self._staleness:
            raise OurFault(f"forward of micro-batch {i} with {self.in_flight} in flight already")
        if speculative != (max(0, i - self._staleness) // self._m < batch):
            raise OurFault(
                f"micro-batch {i} may not run {'on' if speculative else 'off'} the speculative weights"
            )
        if speculative:
            if batch not in self._early:
                raise OurFault(f"micro-batch {i} before the speculative weights of batch {batch} exist")
            return self._early[batch]
        if self._updates != batch:
            raise OurFault(f"micro-batch {i} of batch {batch} on weights with {self._updates} updates")
        return self.params

    def _leaf(self, place: int, tensor: Tensor) -> Tensor:
        source, known = self._leaves.get(place, (lambda: None, lambda: None))
        leaf = known() if source() is tensor else None
        if leaf is None:
            leaf = tensor.detach().to(self.device)
            leaf.requires_grad_(leaf.is_floating_point())
            self._leaves[place] = (weakref.ref(tensor), weakref.ref(leaf))
        return leaf

    def _outgoing(self, output: Tensor) -> Tensor:
        """The output as it is sent; a copy where it lies in the memory of a live parameter."""
        if isinstance(output, Halved):
            return output.whole().to("cpu").contiguous()
        storage = output.untyped_storage()._cdata
        sharing = [(n, p) for n, p in self.params.items() if p.untyped_storage()._cdata == storage]
        if not sharing:
            return output.detach().to("cpu").contiguous()
        for name, weight in sharing:
            self._carried.add(name)
            if _same_memory(output, weight):
                version, copy = self._sent.get(name, (-1, output))
                if version != weight._version:
                    copy = weight.detach().to("cpu", copy=True).contiguous()
                    self._sent[name] = (weight._version, copy)
                return copy
        return output.detach().to("cpu", copy=True).contiguous()

    def _roots(
        self, outputs: Sequence[Tensor], gradients: Sequence[Tensor | None]
    ) -> tuple[list[Tensor], list[Tensor]]:
        if self._is_last:
            if gradients:
                raise TensorError(f"{len(gradients)} gradients for the last stage, which takes none")
            if not outputs[0].requires_grad:
                return [], []
            return [outputs[0]], [torch.ones_like(outputs[0]) / self._m]
        if len(gradients) != len(outputs):
            raise TensorError(f"{len(gradients)} gradients for {len(outputs)} outputs")
        roots, seeds = [], []
        for place, (output, gradient) in enumerate(zip(outputs, gradients, strict=True)):
            if gradient is None:
                continue
            if gradient.shape != output.shape or gradient.dtype != output.dtype:
                raise TensorError(
                    f"gradient {place} is {gradient.dtype} {tuple(gradient.shape)}, "
                    f"the output {output.dtype} {tuple(output.shape)}"
                )
            if output.requires_grad:
                roots.append(output)
                seeds.append(gradient.to(self.device))
        return roots, seeds

    def _accumulate(self, batch: int, gradients: Mapping[str, Tensor | None]) -> None:
        sums = self._sums.setdefault(batch, {})
        for name, gradient in gradients.items():
            if gradient is None:
                continue
            if name in sums:
                sums[name].add_(gradient)
            else:
                sums[name] = torch.empty_like(self._trained[name]).copy_(gradient)


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
