"""Averaging by differences: clusters send what changed since their last common mean, in few bytes.

Problem: parameters take 4 bytes each in every averaging, and on a home link that is most of a round's time.
Solution: all members hold the last common mean to the bit, so only what was learned since then has to be
sent, and that may be rough, for what one round lacks is kept and goes with the next (`ErrorFeedback`).
`difference_codec` writes it down, `DifferenceValues` is the arithmetic of a round in which each chunk has one
owner (`core.rings.Star`).

Source: arXiv 2508.15706 (SparseLoCo): the largest values of each 4,096, two bits each, and error feedback
that fades. There all members hand their values to all; here an owner adds them up and encodes the mean once
more, with a feedback of its own, so that bytes do not grow with the members.
"""

from ravnest_p2p.training.difference.codecs import CODECS, DifferenceCodec, Payload, difference_codec
from ravnest_p2p.training.difference.feedback import KEPT, ErrorFeedback, sparse_outer
from ravnest_p2p.training.difference.sparse import Sparse
from ravnest_p2p.training.difference.values import DifferenceValues

__all__ = [
    "CODECS",
    "KEPT",
    "DifferenceCodec",
    "DifferenceValues",
    "ErrorFeedback",
    "Payload",
    "Sparse",
    "difference_codec",
    "sparse_outer",
]
