"""The model room: a model travels as data.

`capture` turns a user's model into a `Package`; `Package.report` says what it needs; `split` cuts it into
stages; `StageComputation` runs one. Nothing here knows a network.
"""

from ravnest_p2p.model.capture import capture
from ravnest_p2p.model.compute import StageComputation, node_seed
from ravnest_p2p.model.package import Package
from ravnest_p2p.model.parse import Limits, read_program
from ravnest_p2p.model.profile import measured_layers
from ravnest_p2p.model.program import Leaf, Node, Program, Ref, TensorSpec
from ravnest_p2p.model.report import Report
from ravnest_p2p.model.requirements import Requirements, Terms, requirements
from ravnest_p2p.model.split import StageProgram, split, stage_program
from ravnest_p2p.model.weightless import capture_without_weights, is_weightless
from ravnest_p2p.model.weights import load_tensors

__all__ = [
    "Leaf",
    "Limits",
    "Node",
    "Package",
    "Program",
    "Ref",
    "Report",
    "Requirements",
    "StageComputation",
    "StageProgram",
    "TensorSpec",
    "Terms",
    "capture",
    "capture_without_weights",
    "is_weightless",
    "load_tensors",
    "measured_layers",
    "node_seed",
    "read_program",
    "requirements",
    "split",
    "stage_program",
]
