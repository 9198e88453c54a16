"""Run parts of a stage as machine code that TorchInductor makes of them, where that is faster.

Problem: each operation of the flat loop costs a call and a pass over memory; fused code has fewer, but
a code generator is asked with a stranger's graph, may fail, may take minutes, and its code may be slower than
the loop or wrong. Solution: consecutive steps become a `Region`. The first time that it runs it is compiled,
its forward and backward are tried against those of the loop on the values at hand, and it is kept only where
results agree and time is gained; else, and wherever the `Compiler` has no time left, the loop goes on.

Left to the loop are operations that draw from the generator (numbers come from seeds that depend on the node
alone), those that read where a tensor's values say (their checks shall not depend on a code generator), and
those of `model.checked`. Regions end where the model's blocks of equal work may, so that equal ones are
compiled once, and do not depend on each other.
"""

from __future__ import annotations

import logging
import math
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _python_dispatch

from ravnest_p2p.model import ops
from ravnest_p2p.model.blocks import groups
from ravnest_p2p.model.compute import Slots, StageComputation
from ravnest_p2p.model.node import Node
from ravnest_p2p.model.stage_programs import StageProgram

log = logging.getLogger(__name__)

SECONDS = 240.0
"""Of wall time that compiling may take in a run; the last region to begin may take longer."""
MOST_NODES, FEWEST_STEPS, LEAST_BLOCK = 96, 4, 12
"""What takes too long to compile at once, what cannot gain, and what deserves a region of its own."""
TRIALS = 6
LEAST_GAIN = 1.02
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
COARSE_TOLERANCE = 5e-2
"""Largest difference to the loop in the size of a tensor, by its dtype; coarse under autocast."""
SMALL = 1e-2
"""Share of the largest gradient's size up to which another's error is not held against its own size."""
OPTIONS: dict[str, Any] = {"compile_threads": 1, "assert_indirect_indexing": True, "size_asserts": True}

_INDEXED = """
cross_entropy_loss.default embedding.default gather.default index.Tensor index_put.default
index_select.default nll_loss_nd.default one_hot.default scatter.src scatter.value scatter_add.default
take_along_dim.default
"""
INDEXED_OPS = frozenset(f"aten.{name}" for name in _INDEXED.split())
"""Read or write where the values of a tensor say, or take labels for places."""

CHANCE_ARGUMENT = {
    "aten.dropout.default": (1, "p"),
    "aten.scaled_dot_product_attention.default": (4, "dropout_p"),
}
"""Where random operations that draw nothing at a chance of 0 are told it."""

Function = Callable[..., Sequence[Tensor]]


class Compiler:
    """What compiling has cost and gained in a run, and whether there is time for more.

    Args:
        seconds: of wall time; the last region to begin may take longer.
        least_gain: what a region is kept for, as a multiple of the loop's speed.
    Attributes:
        compiled: number of regions.
        why_not: by region, why the loop goes on in it.
    """

    def __init__(self, seconds: float = SECONDS, least_gain: float = LEAST_GAIN) -> None:
        self._left_s = seconds
        self._least_gain = least_gain
        self.compiled = 0
        self.why_not: list[str] = []

    def attempt(
        self, loop: Function, given: Sequence[Tensor], changing: Sequence[int], gives: int
    ) -> Function | None:
        """Compile a function for such arguments, if that is worth it.

        Args:
            loop: of tensors alone; returns `gives` of them.
            given: arguments to compile for; they are not changed.
            changing: places of those that the function writes to.
        """
        if self._left_s <= 0.0:
            return self._refuse("no time is left")
        began = time.perf_counter()
        state = torch.get_rng_state()
        try:
            compiled = _inductor(loop, _own(given, changing), gives)
            off, gain = _trial(loop, compiled, given, changing)
        except Exception as error:
            return self._refuse(f"{type(error).__name__}: {str(error).strip()[:200]}")
        finally:
            torch.set_rng_state(state)
            # Autocast keeps what it has cast of the trial's tensors until the whole forward is done.
            torch.clear_autocast_cache()
            self._left_s -= time.perf_counter() - began
        if off > 1.0:
            return self._refuse(f"its results differ {off:.2g} times as much as they may")
        if gain < self._least_gain:
            return self._refuse(f"compiled, it is {gain:.2f} times as fast")
        self.compiled += 1
        log.info("compiled a region: %.2f times as fast as the loop, %.0f s left", gain, self._left_s)
        return compiled

    def _refuse(self, reason: str) -> Function | None:
        self.why_not.append(reason)
        log.info("a region is not compiled (%s); the loop runs it", reason)
        return None


class Region:
    """Consecutive steps of a stage that run as one; takes the place of a step.

    Attributes:
        reads: slots that it takes from before.
        out: its results that are needed afterwards.
        drop: those of `reads` that nobody needs afterwards.
        changing: places in `reads` of what it writes to.
    """

    random = False

    def __init__(self, steps: Sequence[Any], changing: frozenset[int], compiler: Compiler) -> None:
        self.index = steps[0].index
        self._steps = tuple(steps)
        self._compiler = compiler
        made: set[int] = set()
        reads: dict[int, None] = {}
        for step in steps:
            reads |= dict.fromkeys(slot for slot in step.reads if slot not in made)
            made.update(step.out)
        dropped = {slot for step in steps for slot in step.drop}
        self.reads = tuple(reads)
        self.out = tuple(sorted(made - dropped))
        self.drop = tuple(slot for slot in self.reads if slot in dropped)
        self.changing = tuple(place for place, slot in enumerate(self.reads) if slot in changing)
        self._compiled: Function | None = None
        self._fits: tuple[Any, ...] | None = None

    def run(self, slots: Slots, generator: torch.Generator | None, seed: int) -> None:
        given = [slots[slot] for slot in self.reads]
        kind = _kind(given)
        if self._fits is None and not _python_dispatch.is_in_torch_dispatch_mode():
            # Not while tensors are counted: that would count the compiler's, and not the compiled code's.
            self._fits = kind
            self._compiled = self._compiler.attempt(self._loop, given, self.changing, len(self.out))
        if self._compiled is None or kind != self._fits:
            for step in self._steps:
                step.run(slots, generator, seed)
            return
        for slot in self.drop:
            slots[slot] = None
        for slot, result in zip(self.out, self._compiled(*given), strict=True):
            slots[slot] = result

    def _loop(self, *given: Tensor) -> tuple[Tensor, ...]:
        slots: dict[int, Any] = dict(zip(self.reads, given, strict=True))
        for step in self._steps:
            step.run(slots, None, 0)
        return tuple(slots[slot] for slot in self.out)


def compile_stage(computation: StageComputation, compiler: Compiler | None = None) -> list[Region]:
    """Let regions of a stage be compiled at their first run; returns them.

    A stage that runs stretches again in its backward pass, and one that is not on a CPU, stays as it is.
    """
    if computation.recomputes or computation.device.type != "cpu":
        log.warning("the stage is not compiled: only for a CPU, and where nothing is computed twice")
        return []
    chosen = compiler or Compiler()
    stage = computation.stage
    regions: list[Region] = []

    def fuse(steps: Sequence[Any]) -> list[Any]:
        made: list[Any] = []
        for inside, run in _runs(stage, steps):
            if inside and len(run) >= FEWEST_STEPS:
                regions.append(Region(run, stage.program.mutated_slots, chosen))
                made.append(regions[-1])
            else:
                made += run
        return made

    computation.fuse(fuse)
    return regions


def fusable(node: Node) -> bool:
    """Whether a node may be part of a region."""
    if node.op in ops.RANDOM_OPS:
        position, name = CHANCE_ARGUMENT.get(node.op, (0, ""))
        chance = (
            node.args[position]
            if position and len(node.args) > position
            else dict(node.kwargs).get(name, 0.0)
        )
        return bool(name) and chance == 0.0
    return node.op.startswith("aten.") and node.op not in INDEXED_OPS


def _runs(stage: StageProgram, steps: Sequence[Any]) -> list[tuple[bool, list[Any]]]:
    """The steps, in order, cut between blocks and between what is fusable and what is not, each with that."""
    bounds, nodes = _block_bounds(stage), dict(stage.nodes)

    def kind(step: Any) -> tuple[bool, int]:
        return fusable(nodes[step.index]), bisect_right(bounds, step.index)

    runs: list[tuple[bool, list[Any]]] = []
    for (inside, _), group in groupby(steps, kind):
        # What belongs to one node stays together.
        of_nodes = [list(part) for _, part in groupby(group, lambda step: step.index)]
        for at in range(0, len(of_nodes), MOST_NODES):
            runs.append((inside, [step for part in of_nodes[at : at + MOST_NODES] for step in part]))
    return runs


def _block_bounds(stage: StageProgram) -> list[int]:
    """Indices of the nodes at which a repeated block of some size begins or ends."""
    program = stage.program
    edges = (0, *program.layer_bounds)
    found: set[int] = set()
    for group in groups(program):
        nodes = (edges[group.hi] - edges[group.lo]) // group.repeats
        layers = range(group.lo, group.hi + 1, group.length if nodes >= LEAST_BLOCK else group.hi - group.lo)
        if group.repeats > 1:
            found.update(edges[layer] for layer in layers)
    return sorted(found)


def _kind(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """What compiled code relies on; the rest it got from the program."""
    return (torch.is_grad_enabled(), *((t.shape, t.stride(), t.dtype, t.requires_grad) for t in tensors))


def _own(given: Sequence[Tensor], changing: Sequence[int]) -> list[Tensor]:
    """The same values as leaves of another graph; those that change are copies."""
    return [
        (tensor.clone() if place in changing else tensor.detach()).requires_grad_(tensor.requires_grad)
        for place, tensor in enumerate(given)
    ]


def _inductor(loop: Function, given: Sequence[Tensor], gives: int) -> Function:
    graph = fx.Graph()
    places = tuple(graph.placeholder(f"given{i}") for i in range(len(given)))
    results = graph.call_function(loop, places)
    graph.output(tuple(graph.call_function(getitem, (results, i)) for i in range(gives)))
    compiled: Function = torch._inductor.compile(fx.GraphModule({}, graph), list(given), options=OPTIONS)
    return compiled


def _trial(
    loop: Function, compiled: Function, given: Sequence[Tensor], changing: Sequence[int]
) -> tuple[float, float]:
    """Run both in turns; returns their difference as a share of what is allowed, and the gain in time.

    Time is that of this thread's work, so that what else the computer does decides nothing.
    """
    chance = torch.Generator().manual_seed(0)
    flows = [_like(result, chance) for result in loop(*_own(given, changing))]

    def run(function: Function) -> tuple[list[Tensor | None], float]:
        own = _own(given, changing)
        wanted = [tensor for tensor in own if tensor.requires_grad]
        began = time.thread_time()
        results = list(function(*own))
        ends = [(r, flow) for r, flow in zip(results, flows, strict=True) if r.requires_grad]
        grads: Sequence[Tensor | None] = ()
        if ends:
            outputs, flowing = zip(*ends, strict=True)
            grads = torch.autograd.grad(outputs, wanted, flowing, allow_unused=True)
        took = time.thread_time() - began
        return [*results, *(own[place] for place in changing), *grads], took

    off = difference(run(compiled)[0], run(loop)[0])
    times = [(run(loop)[1], run(compiled)[1]) for _ in range(TRIALS)]
    slow, fast = map(min, zip(*times, strict=True))
    return off, slow / fast


def difference(found: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> float:
    """The largest difference of two tensors at the same place, as a share of what is allowed."""
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if a is not None and b is not None]
    if [a is None for a in found] != [b is None for b in expected]:
        return math.inf
    sizes = [_size(b) for _, b in pairs]
    if not all(map(math.isfinite, sizes)):
        return math.inf
    worst = 0.0
    for (a, b), size in zip(pairs, sizes, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return math.inf
        allowed = _tolerance(b.dtype) * max(size, SMALL * max(sizes))
        off = _size(a.double() - b.double())
        if not off <= worst * allowed:
            worst = off / allowed if allowed and math.isfinite(off) else math.inf
    return worst


def _like(result: Tensor, chance: torch.Generator) -> Tensor:
    return torch.randn(result.shape, generator=chance).to(result.dtype)


def _size(tensor: Tensor) -> float:
    return float(tensor.detach().double().norm())


def _tolerance(dtype: torch.dtype) -> float:
    return COARSE_TOLERANCE if torch.is_autocast_enabled("cpu") else TOLERANCE.get(dtype, COARSE_TOLERANCE)
