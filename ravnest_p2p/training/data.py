"""Training data in shards: safetensors files with one tensor "rows", mapped and read by row.

Problem: a data set is larger than memory, its order is a permutation, and its files come from a stranger.
Solution: shards are mapped, checked against the manifest once, and a micro-batch copies only its own rows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from ravnest_p2p.core.errors import BlobError, OurFault
from ravnest_p2p.core.types import FieldSpec
from ravnest_p2p.training.tensorfile import TensorSpec, open_tensors, write_tensors

ROWS = "rows"


class FieldReader:
    """Rows of one column of the data, over all of its shards. A context manager, or `close` it.

    Args:
        spec: what the manifest says of the column.
        shard_paths: files of `spec.shards`, in order.
    Raises:
        BlobError: a shard is missing, or not one tensor "rows" of the dtype, shape and rows that `spec` says.
    """

    def __init__(self, spec: FieldSpec, shard_paths: Sequence[Path]) -> None:
        if len(shard_paths) != len(spec.shards):
            raise BlobError(f"field {spec.name!r}: {len(shard_paths)} files for {len(spec.shards)} shards")
        self.spec = spec
        self._starts = [0, *accumulate(rows for _, rows in spec.shards)]
        self._dtype: torch.dtype = getattr(torch, spec.dtype)
        with ExitStack() as stack:
            self._shards = []
            for path, (_, rows) in zip(shard_paths, spec.shards, strict=True):
                file = stack.enter_context(open_tensors(Path(path)))
                if file.names != {ROWS}:
                    raise BlobError(f"{file.name}: {len(file.names)} tensors, not only {ROWS!r}")
                self._shards.append(file.mapped(ROWS, TensorSpec(spec.dtype, (rows, *spec.shape))))
            self._open = stack.pop_all()

    def __len__(self) -> int:
        return self._starts[-1]

    def rows(self, indices: Sequence[int]) -> Tensor:
        """A micro-batch: the rows `indices` in that order.

        Returns:
            New tensor, shape (len(indices), *spec.shape), of the field's dtype, CPU.
        Raises:
            OurFault: an index outside the data.
        """
        batch = torch.empty((len(indices), *self.spec.shape), dtype=self._dtype)
        for place, index in enumerate(indices):
            if not 0 <= index < len(self):
                raise OurFault(f"row {index} of field {self.spec.name!r}, which has {len(self)}")
            shard = bisect_right(self._starts, index) - 1
            batch[place] = self._shards[shard][index - self._starts[shard]]
        return batch

    def close(self) -> None:
        """Unmap the shards; rows that were read stay valid."""
        self._shards.clear()
        self._open.close()

    def __enter__(self) -> FieldReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_shards(tensor: Tensor, folder: Path, rows_per_shard: int) -> list[tuple[Path, int]]:
    """Cut a column into shards of whole rows, for the requester to offer as blobs.

    Args:
        tensor: shape (samples, …); at least one sample.
    Returns:
        (file, rows) in order; the last shard may be shorter.
    Raises:
        OurFault: no samples, or `rows_per_shard` below 1.
    """
    if tensor.ndim == 0 or not len(tensor) or rows_per_shard < 1:
        raise OurFault(
            f"cannot cut a tensor of shape {tuple(tensor.shape)} into shards of {rows_per_shard} rows"
        )
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for number, part in enumerate(torch.split(tensor, rows_per_shard)):
        path = folder / f"shard-{number:05d}.safetensors"
        write_tensors(path, {ROWS: part}, {})
        shards.append((path, len(part)))
    return shards
