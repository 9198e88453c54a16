"""A finished job's pieces put together again: one plain state_dict.

Pieces hold a stage's tensors as `param/<name>` and `buffer/<name>`. The program says which names there
are, which of them are one tensor (tied), and which are no part of the model's state. What no stage trained
is as it was submitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from torch import Tensor

from ravnest_p2p.core.errors import BlobError
from ravnest_p2p.model.node import Leaf
from ravnest_p2p.model.program import Program
from ravnest_p2p.training.tensorfile import TensorFile, TensorSpec, open_tensors


def missing_names(program: Program, pieces: Sequence[Path]) -> list[str]:
    """Names of the state that no piece holds; they are in the weights that were submitted.

    Raises:
        BlobError: a tensor that training changes is among them.
    """
    with ExitStack() as stack:
        held = {name for path in pieces for name in stack.enter_context(open_tensors(path)).names}
    missing = [leaf.name for leaf in _state(program) if _key(leaf) not in held]
    lost = _trained(program).intersection(missing)
    if lost:
        raise BlobError(f"the result lacks {len(lost)} trained tensors, such as {min(lost)!r}")
    return missing


def state_dict(program: Program, pieces: Sequence[Path], weights: Sequence[Path]) -> dict[str, Tensor]:
    """The model's state_dict: all names, tied ones sharing one tensor.

    Args:
        pieces: files of one round that cover all layers.
        weights: files of the submitted weights, for what `missing_names` says.
    Raises:
        BlobError: a file is damaged, or a tensor is missing, or of another dtype or shape than the program's.
    """
    state: dict[str, Tensor] = {}
    with ExitStack() as stack:
        trained = [stack.enter_context(open_tensors(path)) for path in pieces]
        initial = [stack.enter_context(open_tensors(path)) for path in weights]
        for leaf in _state(program):
            state[leaf.name] = _take(trained, initial, leaf)
    for first, *others in program.tied:
        if first in state:
            state |= dict.fromkeys(others, state[first])
    return state


def _state(program: Program) -> list[Leaf]:
    return [leaf for leaf in program.params + program.buffers if leaf.name not in program.transient]


def _trained(program: Program) -> set[str]:
    """Names of parameters that some node reads, and of buffers that some node writes."""
    read = {slot for node in program.nodes for slot in node.refs()}
    return {
        leaf.name
        for slot, leaf in enumerate(program.leaves)
        if slot in program.mutated_slots or (leaf.kind == "param" and slot in read)
    }


def _key(leaf: Leaf) -> str:
    return f"{'param' if leaf.kind == 'param' else 'buffer'}/{leaf.name}"


def _take(trained: Sequence[TensorFile], initial: Sequence[TensorFile], leaf: Leaf) -> Tensor:
    wanted = TensorSpec(leaf.dtype, leaf.shape)
    for files, key in ((trained, _key(leaf)), (initial, leaf.name)):
        for file in files:
            if key in file.names:
                return file.mapped(key, wanted).clone()
    raise BlobError(f"neither the result nor the submitted weights hold {leaf.name!r}")
