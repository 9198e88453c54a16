"""Torch, no network: stage compute, optimizer, averaging, pieces and data of one stage."""

from ravnest_p2p.core.optimizers import learning_rate
from ravnest_p2p.training.computation import Computation, Forwarded
from ravnest_p2p.training.data import FieldReader, write_shards
from ravnest_p2p.training.device import (
    DevicePeak,
    check_memory,
    choose_device,
    measure_flops,
    start_device,
    synchronize,
    works,
)
from ravnest_p2p.training.snapshot import StageState, draft_piece, load_pieces
from ravnest_p2p.training.stage import StageTrainer
from ravnest_p2p.training.tensorfile import TensorSpec, spec_of

__all__ = [
    "Computation",
    "DevicePeak",
    "FieldReader",
    "Forwarded",
    "StageState",
    "StageTrainer",
    "TensorSpec",
    "check_memory",
    "choose_device",
    "draft_piece",
    "learning_rate",
    "load_pieces",
    "measure_flops",
    "spec_of",
    "start_device",
    "synchronize",
    "works",
    "write_shards",
]
