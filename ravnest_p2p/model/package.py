"""What travels: a program and its weights, and their two kinds of file.

The program is canonical JSON. Weights are safetensors, which hold tensors and nothing that could run. Values
are not judged: NaN and infinity are legal weights (masks hold -inf), training on them is the owner's affair.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import Tensor

from ravnest_p2p.core.errors import CaptureError, ConfigError, PackageError
from ravnest_p2p.core.types import Capability, LayerCost
from ravnest_p2p.model.evaluation import EvalProgram, Evaluation, only_evaluated, read_evaluation
from ravnest_p2p.model.node import Leaf
from ravnest_p2p.model.parse import Limits, read_program
from ravnest_p2p.model.program import Program
from ravnest_p2p.model.weights import MAX_FILES, WeightsFile, file_name, load_tensors, write_weights

if TYPE_CHECKING:
    from ravnest_p2p.model.report import Report
    from ravnest_p2p.model.requirements import Terms

PROGRAM_FILE = "program.json"
EVALUATION_FILE = "evaluation.json"
EXTRA_FILE = "evaluation.safetensors"
"""Tensors that the evaluation alone uses."""


@dataclass(frozen=True)
class Package:
    """A model as data.

    Attributes:
        weights: parameters and buffers under their state_dict names, on the CPU; a tied one stands here once.
        compared: two steps were seen to equal the model's, here and now; what is read from files says
            nothing of that.
        exact: these were equal to the last bit, not only but for rounding.
        evaluation: the same model in eval mode, None where there is none.
        evaluation_refusal: why there is none, as far as it is known.
    """

    program: Program
    weights: dict[str, Tensor]
    compared: bool = False
    exact: bool = False
    evaluation: EvalProgram | None = None
    evaluation_refusal: str = ""

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

    def evaluate(
        self, data: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None, *, seed: int = 0
    ) -> Evaluation:
        """Run the model in eval mode on one micro-batch, here, on the CPU, without gradients.

        Args:
            data: data fields by name, of the sizes that were captured; those of labels matter for the loss
                only.
            weights: trained ones under the package's names; a name that is missing stands for its own.
            seed: of random operations that are there in eval mode too.
        Raises:
            CaptureError: the package has no evaluation; says why.
            ConfigError: a given weight has another shape or dtype.
            BlobError: a data field is missing, or has another shape or dtype.
        """
        if self.evaluation is None or not self.has_weights:
            why = self.evaluation_refusal or "the package was saved without"
            raise CaptureError(f"the model cannot be evaluated: {why}")
        return self.evaluation.run({**self.weights, **(weights or {})}, data, seed)

    def state_dict(self, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Weights as the user's `load_state_dict(…, strict=False)` takes them.

        Args:
            weights: trained ones under the package's names; its own where None.
        Returns:
            Every name of a tied tensor, and nothing that is not in the model's state_dict. Tensors that the
            captured step never uses are missing.
        """
        held = self.weights if weights is None else weights
        hidden = {*self.program.transient, *(leaf.name for leaf in self._extra)}
        state = {name: t for name, t in held.items() if name not in hidden and "::" not in name}
        for first, *others in self.tied:
            if first in state:
                state.update((name, state[first]) for name in others)
        return state

    @property
    def _extra(self) -> tuple[Leaf, ...]:
        return () if self.evaluation is None else only_evaluated(self.evaluation, self.program)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the package as a folder: both programs, and the weights in files of bounded size.

        The folder appears only when all of it is written.

        Args:
            path: of the folder, which must not exist yet, or be empty.
        Raises:
            CaptureError: the model was captured without weights.
            ConfigError: something is there already, or the folder cannot be written.
        """
        folder = Path(path).expanduser()
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}.part")
        try:
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise ConfigError(f"{folder} exists already; remove it, or save the package elsewhere")
            temporary.mkdir()
            self.write(temporary)
            self._write_evaluation(temporary)
            temporary.replace(folder)
        except OSError as error:
            raise ConfigError(f"the package cannot be saved: {error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def write(self, folder: Path) -> tuple[Path, list[WeightsFile]]:
        """Write what trains into an existing folder; returns the program's and the weights' files.

        Raises:
            CaptureError: the model was captured without weights.
            OSError: the disk is full, or the folder is missing.
        """
        if not self.has_weights:
            raise CaptureError("the model was captured without weights; build it on the CPU to train it")
        path = folder / PROGRAM_FILE
        path.write_bytes(self.program.to_json())
        return path, write_weights(folder, self.program, self.weights)

    def _write_evaluation(self, folder: Path) -> None:
        if self.evaluation is not None:
            (folder / EVALUATION_FILE).write_bytes(self.evaluation.to_json())
        if self._extra:
            extra = {leaf.name: self.weights[leaf.name].contiguous() for leaf in self._extra}
            save_file(extra, folder / EXTRA_FILE)

    @staticmethod
    def load(path: str | os.PathLike[str], limits: Limits | None = None) -> Package:
        """Read a folder that `save` wrote, or a stranger claims it did; nothing of it is run.

        Weights are mapped from the files, which therefore have to stay while the package is used.

        Raises:
            PackageError: the program or the weights are refused, or the folder is no package (remote's
                fault).
        """
        folder = Path(path).expanduser()
        if not (folder / PROGRAM_FILE).is_file():
            raise PackageError(f"{folder} is no package: there is no folder with a {PROGRAM_FILE}")
        present = {path.name for path in islice(folder.iterdir(), MAX_FILES + 4)}
        names = [*takewhile(present.__contains__, map(file_name, range(MAX_FILES)))]
        evaluation = folder / EVALUATION_FILE if EVALUATION_FILE in present else None
        if evaluation is not None and EXTRA_FILE in present:
            names.append(EXTRA_FILE)
        weights = [folder / name for name in names]
        return Package.from_files(folder / PROGRAM_FILE, weights, limits, evaluation)

    @staticmethod
    def from_files(
        program_path: str | os.PathLike[str],
        weights_paths: Sequence[str | os.PathLike[str]],
        limits: Limits | None = None,
        evaluation_path: str | os.PathLike[str] | None = None,
    ) -> Package:
        """Read a program, its weights, and its evaluation if it has one, from files of a stranger.

        Raises:
            PackageError: the program, the evaluation or the weights are refused (remote's fault).
        """
        program = read_program(program_path, limits)
        leaves = program.params + program.buffers
        evaluation = None
        if evaluation_path is not None:
            evaluation = read_evaluation(evaluation_path, program, limits)
            leaves += only_evaluated(evaluation, program)
        weights = load_tensors(weights_paths, {leaf.name: leaf.spec for leaf in leaves})
        return Package(program, weights, evaluation=evaluation)
