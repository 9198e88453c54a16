"""The model room: a model travels as data.

`capture` turns a user's model into a `Package`: a train step, the same model's evaluation, and weights.
`Package.report` says what it needs, `Package.evaluate` evaluates it, `split` cuts it into `Stage`s that go
forward and backward and evaluate. Below, `stage_program` gives a stage as data, and `StageComputation` runs
it with weights that its caller keeps. Nothing here knows a network.
"""

from ravnest_p2p.model.capture import capture
from ravnest_p2p.model.compute import StageComputation, node_seed
from ravnest_p2p.model.evaluation import EvalProgram, Evaluation
from ravnest_p2p.model.node import Leaf, Node, Ref, TensorSpec
from ravnest_p2p.model.package import Package
from ravnest_p2p.model.parse import Limits, read_program
from ravnest_p2p.model.profile import measured_layers
from ravnest_p2p.model.program import Program
from ravnest_p2p.model.report import Report
from ravnest_p2p.model.requirements import Requirements, Terms, requirements
from ravnest_p2p.model.split import split, split_program
from ravnest_p2p.model.stage import Stage
from ravnest_p2p.model.stage_programs import StageProgram, stage_program
from ravnest_p2p.model.weightless import capture_without_weights, is_weightless
from ravnest_p2p.model.weights import load_tensors

__all__ = [
    "EvalProgram",
    "Evaluation",
    "Leaf",
    "Limits",
    "Node",
    "Package",
    "Program",
    "Ref",
    "Report",
    "Requirements",
    "Stage",
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
    "split_program",
    "stage_program",
]
