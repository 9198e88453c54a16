"""Float32 tensors in fewer bytes: `codec_of(name)` encodes a flat tensor and decodes a stranger's payload.

Sizes, and how a codec is chosen, are in `core.compression`. hivemind's codecs are not used: they trust the
sizes that a payload announces and cut off what overflows, and those of 8 bits do not work here
(docs/adr/0017).
"""

from ravnest_p2p.training.codecs.base import Codec
from ravnest_p2p.training.codecs.int4 import Int4
from ravnest_p2p.training.codecs.memory import Feedback
from ravnest_p2p.training.codecs.named import codec_of
from ravnest_p2p.training.codecs.predicted import Predicted, predictable

__all__ = ["Codec", "Feedback", "Int4", "Predicted", "codec_of", "predictable"]
