"""The model room: a model travels as data.

`capture` turns a user's model into a `Package`; `stage_program` cuts a stage out of its `Program`;
`StageComputation` runs it. Nothing here knows a network.
"""

from ravnest_p2p.model.capture import capture
from ravnest_p2p.model.compute import StageComputation, node_seed
from ravnest_p2p.model.package import Package, load_tensors
from ravnest_p2p.model.parse import Limits, read_program
from ravnest_p2p.model.program import Leaf, Node, Program, Ref, TensorSpec
from ravnest_p2p.model.split import StageProgram, split, stage_program

__all__ = [
    "Leaf",
    "Limits",
    "Node",
    "Package",
    "Program",
    "Ref",
    "StageComputation",
    "StageProgram",
    "TensorSpec",
    "capture",
    "load_tensors",
    "node_seed",
    "read_program",
    "split",
    "stage_program",
]
