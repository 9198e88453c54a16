"""Float32 tensors in fewer bytes: `codec_of(name)` encodes a flat tensor and decodes a stranger's payload.

Sizes, and what each codec is for, are in `core.compression`. hivemind's codecs are not used: they trust the
sizes that a payload announces, hold values that overflow by cutting them off, and are slower (see the ADR
on compression).
"""

from ravnest_p2p.training.codecs.base import Codec
from ravnest_p2p.training.codecs.blocks import Blockwise
from ravnest_p2p.training.codecs.feedback import Feedback
from ravnest_p2p.training.codecs.halves import BFloat16, Float16
from ravnest_p2p.training.codecs.named import codec_of

__all__ = ["BFloat16", "Blockwise", "Codec", "Feedback", "Float16", "codec_of"]
