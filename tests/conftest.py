"""What all tests share: one torch thread a process, and hypothesis without deadlines on a noisy machine."""

from __future__ import annotations

import torch
from hypothesis import settings

torch.set_num_threads(1)
# Loaded here, at the start: its plugin would else import it at the very end, where a crash hides the results.
settings.register_profile("ravnest", deadline=None)
settings.load_profile("ravnest")
