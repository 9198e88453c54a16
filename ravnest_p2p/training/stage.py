"""One stage of an asynchronous pipeline: forward, backward, speculate, step.

Problem: without a bubble, micro-batches of the next batch start before this batch's update. Run on the old
weights they bring stale gradients; run on weights that change under their graph they bring wrong ones.
Solution (docs: asynchronous training): batch u is the micro-batches [u·m, (u+1)·m), decided by index and
never by the clock. Those that have to start early (k = i − u·m < τ_u, "crossing") run forward and backward
through ŵ, the optimizer's own next step computed early; all others through the live weights. Every gradient
goes into the accumulator of its own batch, and the ordinary optimizer steps when the batch is complete.
τ = 0 is exactly synchronous training. ŵ of float32 weights is kept in bfloat16 (`halved`), but of those that
cross a cut in full. Other ways to treat the crossing ones (`core.pipeline.correction`) differ in ŵ alone.

By construction no graph on live weights is alive when they are stepped in place; here that is checked. Graphs
in flight may also hold buffers. torch's batch_norm updates its statistics unseen by autograd, but a buffer
that is written in place by ordinary operations would break the graphs before, so from the second forward on
each gets its own copy; the first, with nothing else in flight, tells which buffers those are.

A micro-batch whose loss, activation or gradient is not finite counts nothing (docs/adr/0021), here and, by
the note on its frames, at the other stages; buffers are then what they were before its forward.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from ravnest_p2p.core.errors import OurFault, PackageError, PlanError, TensorError
from ravnest_p2p.core.optimizers import learning_rate
from ravnest_p2p.core.pipeline.correction import CORRECTIONS, NONE, SPECULATIVE, STASH
from ravnest_p2p.core.pipeline.nonfinite import Skipped
from ravnest_p2p.core.pipeline.notes import NO_NOTE, LeftOut, Note, left_out
from ravnest_p2p.core.types import OptimizerSpec
from ravnest_p2p.training.boundary import Boundary, roots_of
from ravnest_p2p.training.clipping import Clipping
from ravnest_p2p.training.computation import Computation, Flight, Forwarded, Locate
from ravnest_p2p.training.finite import finite, small_finite, usable
from ravnest_p2p.training.halved import halved
from ravnest_p2p.training.moving import through_live
from ravnest_p2p.training.optimizer import OptimizerState, StageOptimizer, early_step
from ravnest_p2p.training.sums import GradientSums


class StageTrainer:
    """Trains one stage; every method is called from the one compute thread.

    Micro-batches are numbered from 0 within the generation, and are forwarded and taken back in that order.

    Args:
        computation: what the stage computes.
        params, buffers: this stage's, by name, on the device to compute on; taken over, not copied. Every
            floating-point parameter is trained.
        microbatches_per_update: m.
        staleness: bound on τ of this stage, at most m; at most that and one micro-batches are in flight.
        version: updates that the weights already contain; the learning rate follows it.
        optimizer_state: slots by parameter name, as `optimizer_state()` gives them.
        matrices: names of the model's hidden matrices, which Muon moves; others of the model may be among
            them.
        device: to compute on; where None, that of the parameters.
        correction: what crossing micro-batches run on, of `CORRECTIONS`.
        halve: keep ŵ in bfloat16 where the weights are float32.
        stage: its number, for texts and notes.
        changing: names of the buffers that a forward may change; None stands for all.
        locate: asked where a forward's results are not finite.
    Attributes:
        device: that it computes on.
        optimizer: of its parameters; steps with `step` alone.
        skipped: counts what is left out, and ends the run where that is too much.
        gradient_note: goes along with what the newest backward returned.
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
        stage: int = 0,
        changing: Collection[str] | None = None,
        locate: Locate | None = None,
        skipped: Skipped | None = None,
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
        self.optimizer = StageOptimizer(optimizer, self._trained, self._matrices)
        self.optimizer.restore(optimizer_state or {})
        self._updates = 0
        self._forwarded = 0
        self._done = 0
        self._flights: dict[int, Flight] = {}
        self._sums = GradientSums(self._trained)
        self._early: dict[int, dict[str, Tensor]] = {}
        self._crossing: dict[int, int] = {}
        self._rewritten: set[str] = set()
        self._boundary = Boundary(self.params, self.device)
        self._stage = stage
        self._changing = frozenset(self.buffers if changing is None else changing)
        self._locate = locate
        self.skipped = skipped or Skipped()
        self.gradient_note = NO_NOTE
        self._clipping = Clipping(optimizer, microbatches_per_update)

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
        return self.optimizer.state()

    def forward(
        self,
        i: int,
        received: Sequence[Tensor],
        data: Mapping[str, Tensor],
        seed: int,
        *,
        speculative: bool,
        note: Note = NO_NOTE,
    ) -> Forwarded:
        """Run micro-batch `i` and keep its graph until `backward(i)`; one that is left out has none.

        Args:
            received: outputs of the stage before, in order; their memory belongs to the graph from here on. A
                tensor that came with the micro-batch before, too, is brought to the device once.
            data: this stage's fields, by graph input name.
            speculative: run on ŵ; has to agree with the index: i is among the batch's crossing ones.
            note: what came along with `received`.
        Raises:
            OurFault: out of order, over the window, or on weights that the index does not ask for.
            PackageError: the last stage computes something other than one scalar loss.
        """
        batch = i // self._m
        weights = self._weights_for(i, batch, speculative)
        sent: tuple[Tensor, ...] = ()
        flight = Flight((), (), weights, speculative, note.left_out)
        if note.left_out is None:
            flight, sent = self._run(received, data, seed, weights, speculative)
        self._flights[i] = flight
        self._forwarded += 1
        if i % self._m == self._crossing.get(batch, 0) - 1:
            del self._early[batch]
        version = self._version - self._updates + batch - speculative
        onward = Note(flight.left_out, self._clipping.forwarded(i, batch - speculative, note.norm))
        if self._is_last:
            loss = math.nan if flight.left_out else float(flight.outputs[0].detach())
            return Forwarded((), loss, version, onward)
        return Forwarded(sent, None, version, onward)

    def _run(
        self,
        received: Sequence[Tensor],
        data: Mapping[str, Tensor],
        seed: int,
        weights: Mapping[str, Tensor],
        speculative: bool,
    ) -> tuple[Flight, tuple[Tensor, ...]]:
        """The forward itself: its graph, and what is to be sent."""
        kept = {name: self.buffers[name].clone() for name in self._changing}
        for name in self._rewritten:
            self.buffers[name] = self.buffers[name].clone()
        before = {name: (buffer, buffer._version) for name, buffer in self.buffers.items()}
        leaves = tuple(self._boundary.leaf(place, tensor) for place, tensor in enumerate(received))
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
        sent = () if self._is_last else tuple(self._boundary.outgoing(output) for output in outputs)
        if self._usable(outputs, sent):
            return Flight(leaves, outputs, weights, speculative, None), sent
        self.buffers |= kept
        place = self._locate(weights, self.buffers, leaves, inputs, seed) if self._locate else ""
        what = "the loss" if self._is_last else "an activation"
        why = f"{what} is not finite: {place}" if place else f"{what} is not finite"
        return Flight((), (), weights, speculative, left_out(self._stage, why)), ()

    def _usable(self, outputs: Sequence[Tensor], sent: Sequence[Tensor]) -> bool:
        if self._is_last:
            return finite(outputs[0])
        pairs = zip(outputs, sent, strict=True)
        return all(usable(tensor) for output, tensor in pairs if self._boundary.computed(output, tensor))

    def backward(
        self, i: int, gradients: Sequence[Tensor | None], note: Note = NO_NOTE
    ) -> tuple[Tensor | None, ...]:
        """Take micro-batch `i` back: gradients for what it received; its weights' go into batch i//m's sum.

        The loss is seeded with 1/m, so the sum is that of plain PyTorch's `(loss / m).backward()`. What is
        left out adds nothing and gives no gradients; `gradient_note` says so.

        Args:
            gradients: for each output in order, None where it has none; empty on the last stage.
            note: what came along with them.
        Returns:
            For each received tensor: gradient of its shape and dtype, contiguous, on the CPU, or None.
        Raises:
            OurFault: not the oldest micro-batch in flight.
            TensorError: another number, shape or dtype of gradients than the outputs have; nothing changed.
            DivergedError: too much is left out.
        """
        if i != self._done or i not in self._flights:
            raise OurFault(
                f"backward of micro-batch {i} where {self._done} is next, in flight {self.in_flight}"
            )
        flight = self._flights[i]
        back: tuple[Tensor | None, ...] = ()
        found = flight.left_out or note.left_out
        roots, seeds = self._roots(flight, gradients) if found is None else ([], [])
        del self._flights[i]
        self._done += 1
        if found is None:
            if all(finite(gradient) for gradient in gradients if gradient is not None):
                found, back = self._take_back(i // self._m, flight, roots, seeds)
            else:
                found = left_out(self._stage + 1, "it sent a gradient that is not finite")
        norm = self._clipping.taken_back(i, note.norm, self._sums.of(i // self._m))
        self.gradient_note = Note(found, norm)
        if found is not None:
            self.skipped.microbatch(i, found)
        return back

    def _take_back(
        self, batch: int, flight: Flight, roots: list[Tensor], seeds: list[Tensor]
    ) -> tuple[LeftOut | None, tuple[Tensor | None, ...]]:
        """The backward itself: why it counts nothing, or what flows back."""
        names = [n for n in self._trained if flight.weights[n].requires_grad]
        wanted = [leaf for leaf in flight.leaves if leaf.requires_grad]
        found: list[Tensor | None] = [None] * (len(wanted) + len(names))
        if roots and found:
            sources = wanted + [flight.weights[n] for n in names]
            found = list(torch.autograd.grad(roots, sources, seeds, allow_unused=True))
        of_weights = dict(zip(names, found[len(wanted) :], strict=True))
        flowing = iter(found[: len(wanted)])
        given = [next(flowing) if leaf.requires_grad else None for leaf in flight.leaves]
        back = tuple(None if g is None else g.detach().to("cpu").contiguous() for g in given)
        looked_at = [g for g in back if g is not None]
        if not (all(map(finite, looked_at)) if looked_at else small_finite(of_weights.values())):
            bad = [name for name, g in of_weights.items() if g is not None and not finite(g)]
            why = f"a gradient is not finite: of {bad[-1]} first" if bad else "a gradient is not finite"
            return left_out(self._stage, why), ()
        flowing_on = [g for g in found[: len(wanted)] if g is not None]
        self._sums.add(batch, of_weights, [*flowing_on, *seeds])
        return None, back

    def speculate(self, crossing: int | None = None) -> None:
        """Make ready what the next batch's crossing micro-batches run on; see `early_step` for ŵ's formulas.

        Called when n = m − τ micro-batches of the current batch have been taken back. The live weights and
        the optimizer's state stay as they are.

        Args:
            crossing: τ of the next batch, at least 1; the bound by default.
        Raises:
            OurFault: called at another moment, or for more than the bound.
        """
        crossing = self._staleness if crossing is None else crossing
        n = self._m - crossing
        if not 1 <= crossing <= self._staleness or self._done != self._updates * self._m + n:
            raise OurFault(
                f"speculate for {crossing} after {self._done} micro-batches and {self._updates} updates, "
                f"with m = {self._m} and staleness up to {self._staleness}"
            )
        self._crossing[self._updates + 1] = crossing
        self._early[self._updates + 1] = {**self.params, **self._crossing_weights(n)}

    def _crossing_weights(self, n: int) -> dict[str, Tensor]:
        if self._correction == NONE:
            return {}
        if self._correction == STASH:
            return {name: p.detach().clone().requires_grad_() for name, p in self._trained.items()}
        moved = early_step(
            self._spec,
            self._trained,
            self._sums.of(self._updates),
            self.optimizer_state(),
            version=self._version,
            done=n,
            of=self._m,
            matrices=self._matrices,
            others=self._clipping.others(self._updates - 1),
            keep=self._kept,
        )
        still = {n: self._kept(n, p.detach().clone()) for n, p in self._trained.items() if n not in moved}
        return {name: weight.requires_grad_() for name, weight in {**moved, **still}.items()}

    def _kept(self, name: str, weight: Tensor) -> Tensor:
        return halved(weight) if self._halve and name not in self._boundary.carried else weight

    def step(self) -> None:
        """Apply the complete current batch to the live weights: clip, then the optimizer.

        A gradient that is not finite changes nothing but the number of updates.

        Raises:
            OurFault: the batch is incomplete, or a graph on the live weights is still alive.
            DivergedError: too much is left out.
        """
        if self._done < (self._updates + 1) * self._m:
            raise OurFault(f"step {self._updates} after only {self._done} micro-batches of {self._m} each")
        live = [i for i, flight in self._flights.items() if not flight.speculative]
        if live:
            raise OurFault(
                f"step {self._updates} while micro-batches {live} are in flight on the live weights"
            )
        norm = self._clipping.norm(self._updates, self._sums.of(self._updates))
        sums = self._sums.pop(self._updates)
        if finite(norm):
            for name, weight in self._trained.items():
                weight.grad = sums.get(name)
            self._clipping.clip(self._updates, self._trained.values())
            self.optimizer.step(self._version)
        self._crossing.pop(self._updates, None)
        self._updates += 1
        self._version += 1
        if not finite(norm):
            bad = [name for name, total in sums.items() if not finite(total)]
            why = f"the gradient of {bad[0]} is not finite" if bad else "the gradient's norm is not finite"
            self.skipped.update(self._updates - 1, self._stage, why)

    def _weights_for(self, i: int, batch: int, speculative: bool) -> Mapping[str, Tensor]:
        if i != self._forwarded:
            raise OurFault(f"forward of micro-batch {i} where {self._forwarded} is next")
        if self.in_flight > self._staleness:
            raise OurFault(f"forward of micro-batch {i} with {self.in_flight} in flight already")
        crossing = i - batch * self._m < self._crossing.get(batch, 0)
        if speculative and batch not in self._early:
            raise OurFault(f"micro-batch {i} before the speculative weights of batch {batch} exist")
        if speculative != crossing:
            raise OurFault(
                f"micro-batch {i} may not run {'on' if speculative else 'off'} the speculative weights"
            )
        if speculative:
            return self._early[batch]
        if self._updates != batch:
            raise OurFault(f"micro-batch {i} of batch {batch} on weights with {self._updates} updates")
        return self.params

    def _roots(self, flight: Flight, gradients: Sequence[Tensor | None]) -> tuple[list[Tensor], list[Tensor]]:
        if not self._is_last:
            return roots_of(flight.outputs, gradients, self.device)
        if gradients:
            raise TensorError(f"{len(gradients)} gradients for the last stage, which takes none")
        (loss,) = flight.outputs
        return roots_of([loss], [torch.ones_like(loss) / self._m], self.device)
