"""Pieces: a stage's state saved by tensor name, so that stages with other cuts can load it.

Problem: after a failure the next generation cuts the layers elsewhere, and takes the state from pieces that
other stages wrote and that strangers kept. Solution: a piece is a safetensors file whose tensors are named
`param/<name>`, `buffer/<name>` and `optim/<name>/<slot>`; a stage loads what it needs by name out of several
pieces, and takes nothing whose dtype, shape and values are not what its package says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ravnest_p2p.core.errors import BlobError, PackageError
from ravnest_p2p.training.optimizer import SLOTS, OptimizerState
from ravnest_p2p.training.tensorfile import TensorDraft, TensorFile, TensorSpec, open_tensors

FORMAT = "ravnest-piece/1"
COUNT_LIMIT = 1 << 53
"""Versions and batch numbers stay exact in every language's numbers."""

_ALL_SLOTS = frozenset().union(*SLOTS.values())


class StageState(NamedTuple):
    """A stage's state out of pieces; `version` is the highest among them, `batches_done` the same in all."""

    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    optimizer_state: dict[str, dict[str, Tensor]]
    version: int
    batches_done: int


def draft_piece(
    path: Path,
    params: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    optimizer_state: OptimizerState,
    *,
    version: int,
    batches_done: int,
) -> TensorDraft:
    """A piece whose tensors, `param_key`, `buffer_key` and `slot_key`, may still be replaced.

    `TensorDraft.finish` makes it a file, which appears at once. The same state gives the same bytes.

    Raises:
        OSError: the disk is full, or the folder is missing; no temporary file is left.
    """
    tensors = {param_key(name): tensor for name, tensor in params.items()}
    tensors |= {buffer_key(name): tensor for name, tensor in buffers.items()}
    for name, slots in optimizer_state.items():
        tensors |= {slot_key(name, slot): tensor for slot, tensor in slots.items()}
    metadata = {"format": FORMAT, "version": str(version), "batches_done": str(batches_done)}
    return TensorDraft(path, tensors, metadata)


def param_key(name: str) -> str:
    """Of a parameter, in a piece."""
    return f"param/{name}"


def buffer_key(name: str) -> str:
    """Of a buffer, in a piece."""
    return f"buffer/{name}"


def slot_key(name: str, slot: str) -> str:
    """Of a tensor of a parameter's optimizer state, in a piece."""
    return f"optim/{name}/{slot}"


def load_pieces(
    paths: Sequence[Path], params: Mapping[str, TensorSpec], buffers: Mapping[str, TensorSpec]
) -> StageState:
    """Load the wanted parameters, buffers and the parameters' optimizer state out of pieces of one round.

    A tensor in several pieces is taken from the first. Memory is bounded by what is wanted: everything else
    stays on disk.

    Args:
        params, buffers: dtype and shape of each tensor that the stage needs.
    Raises:
        BlobError: a file is no piece, or a tensor has another dtype or shape, or is not finite.
        PackageError: the pieces do not cover what is wanted, or are of different rounds.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(open_tensors(Path(path))) for path in paths]
        counts = [(_count(file, "version"), _count(file, "batches_done")) for file in files]
        rounds = {batches_done for _, batches_done in counts}
        if len(rounds) != 1:
            raise PackageError(f"pieces of different rounds: batches done {sorted(rounds)}")
        state: dict[str, dict[str, Tensor]] = {}
        for name, spec in params.items():
            slots = _slots(files, name, spec)
            if slots:
                state[name] = slots
        return StageState(
            {name: _take(files, param_key(name), spec) for name, spec in params.items()},
            {name: _take(files, buffer_key(name), spec) for name, spec in buffers.items()},
            state,
            max(version for version, _ in counts),
            rounds.pop(),
        )


def _count(file: TensorFile, key: str) -> int:
    text = file.metadata.get(key, "")
    if file.metadata.get("format") != FORMAT or not text.isascii() or not text.isdigit() or len(text) > 16:
        raise BlobError(
            f"{file.name} is no piece: format {file.metadata.get('format')!r:.40}, {key} {text!r:.40}"
        )
    if int(text) > COUNT_LIMIT:
        raise BlobError(f"{file.name}: {key} {text} is over {COUNT_LIMIT}")
    return int(text)


def _take(files: Sequence[TensorFile], key: str, wanted: TensorSpec) -> Tensor:
    for file in files:
        if key in file.names:
            tensor = file.mapped(key, wanted).clone()
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise BlobError(f"{file.name}: tensor {key!r} is not finite")
            return tensor
    raise PackageError(f"no piece holds {key!r}")


def _slots(files: Sequence[TensorFile], name: str, spec: TensorSpec) -> dict[str, Tensor]:
    """Optimizer state of one parameter, all from the first piece that holds the parameter."""
    home = next((file for file in files if param_key(name) in file.names), None)
    if home is None:
        return {}
    slots = {}
    for slot in sorted(_ALL_SLOTS):
        key = slot_key(name, slot)
        if key in home.names:
            slots[slot] = _take([home], key, TensorSpec("float32", ()) if slot == "step" else spec)
            if slot in ("step", "exp_avg_sq") and bool((slots[slot] < 0).any()):
                raise BlobError(f"{home.name}: tensor {key!r} is negative")
    return slots
