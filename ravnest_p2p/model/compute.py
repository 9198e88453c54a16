"""Run one stage: a flat loop over slots, recorded by autograd.

Problem: an interpreter of graph objects costs up to half of a small model's time, and keeps activations alive
too long. Solution: a stage is compiled once to a list of steps; each step fills its argument list, calls the
operation, and drops the slots that nobody reads any more. Parameters are arguments, so the caller chooses
between live weights and a scratch copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ravnest_p2p.core.errors import BlobError, FrameFormatError
from ravnest_p2p.model import ops
from ravnest_p2p.model.execute import bind, flatten
from ravnest_p2p.model.node import Arg, Node, Ref, TensorSpec
from ravnest_p2p.model.recompute import Stretch, stretches
from ravnest_p2p.model.remade import LEAST_BYTES, PRODUCT, REMADE_OPS, Recipes
from ravnest_p2p.model.stage_programs import Excerpt, StageProgram

Slots = list[Any] | dict[int, Any]

_MASK = (1 << 64) - 1


def node_seed(seed: int, index: int) -> int:
    """Seed of one random node: a 64-bit mix (SplitMix64) of the micro-batch's seed and the node's index."""
    z = (seed + (index + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


class Computation:
    """Executes one stage's share of a graph.

    Args:
        stage: what to run.
        device: where parameters, buffers and received tensors are.
        reseed: seed each random node by its index; False draws from torch's generator as it stands.
    """

    def __init__(self, stage: Excerpt, device: torch.device | str = "cpu", *, reseed: bool = True) -> None:
        self.stage = stage
        self.device = torch.device(device)
        self.reseed = reseed
        self._steps = _compile(stage, self.device)
        self._leaf_slots = {leaf.name: slot for slot, leaf in enumerate(stage.program.leaves)}
        self._size = stage.program.first_slots[-1]
        self._random = any(step.random for step in self._steps)

    def forward(
        self,
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        received: Sequence[Tensor],
        data: Mapping[str, Tensor],
        seed: int,
    ) -> tuple[Tensor, ...]:
        """Run the stage on one micro-batch.

        Gradients follow from `torch.autograd.grad(outputs, [*params, *received], …)` over the differentiable
        ones; a value that only passes through comes out as the very tensor that came in.

        Args:
            params: at least `stage.params`, by name.
            buffers: at least `stage.buffers`, by name; the mutable ones are updated in place.
            received: as in `stage.receives`.
            data: at least `stage.data_inputs`, by name; other fields are ignored.
            seed: of this micro-batch; the same on every stage.
        Returns:
            As in `stage.sends`: for the next stage, or (loss,) on the last.
        Raises:
            FrameFormatError: a received tensor has another shape or dtype (remote's fault).
            BlobError: a data field has another shape or dtype (remote's fault).
        """
        slots = self._filled(params, buffers, received, data)
        self._execute(slots, seed)
        return tuple(slots[slot] for slot in self.stage.sent_slots)

    def fuse(self, fusing: Callable[[Sequence[Any]], list[Any]]) -> None:
        """Replace steps by others that do the same."""
        self._steps = fusing(self._steps)

    def run(self, steps: Sequence[Any], slots: Slots, seed: int) -> None:
        """Run some of the stage's steps, in order, on slots that hold what these read."""
        with self._own_chance() as generator:
            for step in steps:
                step.run(slots, generator, seed)

    def _execute(self, slots: Slots, seed: int) -> None:
        self.run(self._steps, slots, seed)

    def _filled(
        self,
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        received: Sequence[Tensor],
        data: Mapping[str, Tensor],
    ) -> list[Any]:
        stage = self.stage
        slots: list[Any] = [None] * self._size
        if len(received) != len(stage.receives):
            raise FrameFormatError(
                f"{len(received)} tensors received where {len(stage.receives)} are expected"
            )
        for position, (slot, spec, tensor) in enumerate(
            zip(stage.received_slots, stage.receives, received, strict=True)
        ):
            if not _matches(tensor, spec):
                raise FrameFormatError(f"received tensor {position} is {_shown(tensor)}, not {spec}")
            slots[slot] = tensor
        for name in stage.data_inputs:
            spec = stage.tensor_spec(name)
            if name not in data or not _matches(data[name], spec):
                raise BlobError(f"data field {name} is {_shown(data.get(name))}, not {spec}")
            slots[self._leaf_slots[name]] = data[name]
        for name in stage.params:
            slots[self._leaf_slots[name]] = params[name]
        for name in stage.buffers:
            # Another tensor over the same memory: its own version counter lets the caller average or reload
            # buffers between this forward and its backward, which autograd would else refuse.
            slots[self._leaf_slots[name]] = buffers[name].data
        return slots

    @contextmanager
    def _own_chance(self) -> Iterator[torch.Generator | None]:
        """The generator that random nodes seed; left as it was found."""
        if not (self._random and self.reseed):
            yield None
            return
        generator = self._generator()
        state = generator.get_state()
        try:
            yield generator
        finally:
            generator.set_state(state)

    def _generator(self) -> torch.Generator:
        if self.device.type == "cuda":
            torch.cuda.init()  # type: ignore[no-untyped-call]
            index = self.device.index
            return torch.cuda.default_generators[torch.cuda.current_device() if index is None else index]
        if self.device.type == "mps":
            return torch.mps._get_default_mps_generator()
        return torch.default_generator


class StageComputation(Computation):
    """Executes one stage of a train step.

    Args:
        stage, device, reseed: as for `Computation`.
        recompute: layers of the program at which stretches start that keep nothing but what enters them, and
            run again in the backward pass (`model.recompute`); None keeps what autograd saves.
        remake: of that, what costs little is made again all the same (`model.remade`). It must not be, where
            weights may be stepped between a forward and its backward.
    """

    stage: StageProgram

    def __init__(
        self,
        stage: StageProgram,
        device: torch.device | str = "cpu",
        *,
        reseed: bool = True,
        recompute: Sequence[int] | None = None,
        remake: bool = True,
    ) -> None:
        super().__init__(stage, device, reseed=reseed)
        self._recompute = recompute
        self._makers = _makers(stage, self._steps) if remake else {}

    def fuse(self, fusing: Callable[[Sequence[Any]], list[Any]]) -> None:
        """Replace steps by others that do the same, and that know themselves what to keep."""
        super().fuse(fusing)
        self._makers = {}

    @property
    def recomputes(self) -> bool:
        """Whether parts of it run again in the backward pass."""
        return self._recompute is not None

    def _execute(self, slots: Slots, seed: int) -> None:
        if self._recompute is not None:
            for stretch in self._stretches:
                stretch.run(self, slots, seed)
        elif self._makers:
            recipes = Recipes(self._makers)
            with self._own_chance() as generator:
                for step in self._steps:
                    recipes.run(step, slots, generator, seed)
        else:
            self.run(self._steps, slots, seed)

    @cached_property
    def _stretches(self) -> list[Stretch]:
        return stretches(self.stage, self._steps, self._recompute or ())


class _Step:
    """One compiled node: argument templates with holes, result slots, and slots to drop.

    Whatever can be decided once is decided in the constructor, since `run` is what a small model's time is
    spent in besides the arithmetic.
    """

    __slots__ = (
        "args",
        "cloned",
        "drop",
        "holes",
        "index",
        "kwargs",
        "named",
        "nested",
        "no_grad",
        "op",
        "out",
        "random",
        "reads",
    )

    def __init__(
        self, index: int, node: Node, first: int, mutable: frozenset[int], device: torch.device
    ) -> None:
        self.index = index
        # The function behind the overload: the overload itself is one more Python call around it.
        self.op = ops.resolve(node.op)._op
        self.args: list[Any] = [bind(a, Ref) if isinstance(a, tuple) else a for a in node.args]
        self.holes = [(i, a.slot) for i, a in enumerate(node.args) if isinstance(a, Ref)]
        self.nested = [(i, a) for i, a in enumerate(node.args) if isinstance(a, tuple) and _holds_slot(a)]
        self.kwargs: dict[str, Any] = {name: bind(value, Ref) for name, value in node.kwargs}
        self.named = [(name, value) for name, value in node.kwargs if _holds_slot(value)]
        if node.op in ops.FACTORY_OPS:
            self.kwargs["device"] = device
        self.no_grad = node.no_grad
        self.random = node.op in ops.RANDOM_OPS
        self.out = tuple(range(first, first + len(node.outputs)))
        self.reads = tuple(dict.fromkeys(node.refs()))
        self.cloned = frozenset(node.refs()) & mutable - set(node.mutated())
        self.drop: tuple[int, ...] = ()

    def run(self, slots: Slots, generator: torch.Generator | None, seed: int) -> None:
        args = self.args.copy()
        kwargs = self.kwargs
        if self.cloned:
            # Training changes this buffer later, while autograd may keep what is read now.
            held = {slot: slots[slot].clone() for slot in self.cloned}
            fetch: Callable[[int], Any] = lambda slot: held.get(slot, slots[slot])  # noqa: E731
        else:
            fetch = slots.__getitem__
        for position, slot in self.holes:
            args[position] = fetch(slot)
        for position, value in self.nested:
            args[position] = bind(value, fetch)
        if self.named:
            kwargs = kwargs | {name: bind(value, fetch) for name, value in self.named}
        if self.random and generator is not None:
            generator.manual_seed(node_seed(seed, self.index))
        if self.no_grad:
            with torch.no_grad():
                result = self.op(*args, **kwargs)
        else:
            result = self.op(*args, **kwargs)
        out = self.out
        if len(out) == 1:
            slots[out[0]] = result if isinstance(result, Tensor) else result[0]
        elif out:
            tensors = result if len(result) == len(out) else flatten(result)
            for slot, tensor in zip(out, tensors, strict=True):
                slots[slot] = tensor
        for slot in self.drop:
            slots[slot] = None


def _holds_slot(value: Arg) -> bool:
    return isinstance(value, Ref) or (isinstance(value, tuple) and any(_holds_slot(item) for item in value))


def _compile(stage: Excerpt, device: torch.device) -> list[_Step]:
    program = stage.program
    mutable = program.mutated_slots
    steps = [_Step(i, node, program.first_slots[i], mutable, device) for i, node in stage.nodes]
    kept = set(stage.sent_slots)
    for step, (_, node) in zip(reversed(steps), reversed(stage.nodes), strict=True):
        dying = {slot for slot in (*node.refs(), *step.out) if slot not in kept}
        step.drop = tuple(sorted(dying))
        kept |= dying
    return steps


def _makers(stage: Excerpt, steps: Sequence[_Step]) -> dict[_Step, str]:
    """Steps whose results may be worth a recipe, and their operations."""
    analysis, mutable = stage.program.analysis, stage.program.mutated_slots
    if analysis.precision != "fp32":
        return {}
    return {
        step: node.op
        for step, (_, node) in zip(steps, stage.nodes, strict=True)
        if (node.op in REMADE_OPS or node.op == PRODUCT)
        and not step.no_grad
        and mutable.isdisjoint(step.reads)
        and analysis.specs[step.out[0]].nbytes >= LEAST_BYTES
    }


def _matches(tensor: Tensor, spec: TensorSpec) -> bool:
    return tuple(tensor.shape) == spec.shape and tensor.dtype == spec.torch_dtype


def _shown(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{tuple(tensor.shape)} {ops.dtype_name(tensor.dtype)}"
