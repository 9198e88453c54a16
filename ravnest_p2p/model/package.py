"""What travels: a program and its weights, and their two kinds of file.

The program is canonical JSON. Weights are safetensors, which hold tensors and nothing that could run. Values
are not judged: NaN and infinity are legal weights (masks hold -inf), training on them is the owner's affair.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ravnest_p2p.core.errors import CaptureError, PackageError
from ravnest_p2p.core.types import Capability, LayerCost
from ravnest_p2p.model.parse import Limits, read_program
from ravnest_p2p.model.program import Program, TensorSpec
from ravnest_p2p.model.stranger import read_ordinary, strict_json

if TYPE_CHECKING:
    from ravnest_p2p.model.report import Report
    from ravnest_p2p.model.requirements import Terms

PROGRAM_FILE = "program.json"
WEIGHTS_FILE = "weights.safetensors"
HEADER_LIMIT_BYTES = 8 << 20
"""A header of weights over this is refused: about 70,000 tensors."""

_STORED = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class Package:
    """A model as data.

    Attributes:
        weights: parameters and buffers under their state_dict names, on the CPU; a tied one stands here once.
    """

    program: Program
    weights: dict[str, Tensor]

    @property
    def tied(self) -> tuple[tuple[str, ...], ...]:
        """Groups of names of one tensor; the first is the one in `weights`."""
        return self.program.tied

    @property
    def layers(self) -> tuple[LayerCost, ...]:
        return self.program.layers

    @property
    def has_weights(self) -> bool:
        """False where the model was captured by shapes alone: fit for a report, not for training."""
        return bool(self.weights) or not self.program.params

    def report(
        self,
        terms: Terms | None = None,
        *,
        stages: int | None = None,
        peers: Sequence[Capability] | None = None,
        layers: Sequence[LayerCost] | None = None,
    ) -> Report:
        """What the model needs, layer by layer, and how it would be split.

        Args:
            terms: optimizer, precision, micro-batches an update; AdamW in float32 where None.
            stages: propose a split over so many equal peers.
            peers: propose a split over these, one stage each, in the order that is best.
            layers: costs to use instead of the counted ones, such as `measured_layers` gives.
        Raises:
            PlanningError: no split fits; the message says what is missing.
            ConfigError: the precision is unknown.
        """
        from ravnest_p2p.model.report import make_report

        return make_report(self, terms, stages=stages, peers=peers, layers=layers)

    def state_dict(self, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Weights as the user's `load_state_dict(…, strict=False)` takes them.

        Args:
            weights: trained ones under the package's names; its own where None.
        Returns:
            Every name of a tied tensor, and nothing that is not in the model's state_dict. Tensors that the
            captured step never uses are missing.
        """
        held = self.weights if weights is None else weights
        hidden = set(self.program.transient)
        state = {name: t for name, t in held.items() if name not in hidden and "::" not in name}
        for first, *others in self.tied:
            if first in state:
                state.update((name, state[first]) for name in others)
        return state

    def save(self, folder: str | os.PathLike[str]) -> tuple[Path, Path]:
        """Write both files into an existing folder; returns (program path, weights path).

        Raises:
            CaptureError: the model was captured without weights.
        """
        if not self.has_weights:
            raise CaptureError("the model was captured without weights; build it on the CPU to train it")
        program_path, weights_path = Path(folder) / PROGRAM_FILE, Path(folder) / WEIGHTS_FILE
        program_path.write_bytes(self.program.to_json())
        save_file({name: tensor.contiguous() for name, tensor in self.weights.items()}, weights_path)
        return program_path, weights_path

    @staticmethod
    def load(
        program_path: str | os.PathLike[str],
        weights_paths: Sequence[str | os.PathLike[str]],
        limits: Limits | None = None,
    ) -> Package:
        """Read files from a stranger.

        Raises:
            PackageError: the program or the weights are refused (remote's fault).
        """
        program = read_program(program_path, limits)
        wanted = {leaf.name: leaf.spec for leaf in program.params + program.buffers}
        return Package(program, load_tensors(weights_paths, wanted))


def load_tensors(
    paths: Sequence[str | os.PathLike[str]], wanted: Mapping[str, TensorSpec], *, partial: bool = False
) -> dict[str, Tensor]:
    """Read named tensors from safetensors files; headers are checked before any tensor is read.

    Args:
        wanted: what the files must hold, together and nothing else.
        partial: other tensors in the files are skipped instead of refused; a stage reads its own that way.
    Raises:
        PackageError: a file is malformed; a tensor is missing, extra, twice there, or has another shape or
            dtype.
    """
    found: dict[str, Tensor] = {}
    for path in paths:
        _check_header(path)
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                names = [name for name in file.keys() if not partial or name in wanted]  # noqa: SIM118
                for name in names:
                    _check(file.get_slice(name), name, wanted, found)
                for name in names:
                    found[name] = file.get_tensor(name)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise PackageError(f"weights file refused: {str(error)[:400]}") from error
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise PackageError(
            f"weights lack {missing[0]!r}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
        )
    return found


def _check_header(path: str | os.PathLike[str]) -> None:
    """Refuse what the library would take in: pipes and links, a key twice, a header as large as memory."""
    length = int.from_bytes(read_ordinary(path, 8, head_only=True), "little")
    if length > HEADER_LIMIT_BYTES:
        raise PackageError(f"weights file refused: a header of {length} bytes, over {HEADER_LIMIT_BYTES}")
    try:
        strict_json(read_ordinary(path, 8 + length, head_only=True)[8:], Limits().items)
    except ValueError as error:
        raise PackageError(f"weights file refused: the header is not valid JSON: {error}") from error


def _check(header: object, name: str, wanted: Mapping[str, TensorSpec], found: Mapping[str, Tensor]) -> None:
    if name in found:
        raise PackageError(f"weights hold {name[:100]!r} twice")
    if name not in wanted:
        raise PackageError(f"weights hold {name[:100]!r}, which the program does not use")
    shape, dtype = tuple(header.get_shape()), _STORED.get(header.get_dtype())  # type: ignore[attr-defined]
    spec = wanted[name]
    if (shape, dtype) != (spec.shape, spec.dtype):
        raise PackageError(f"weight {name!r} is {shape} {dtype}, not {spec.shape} {spec.dtype}")
