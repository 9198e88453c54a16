"""What all tests share: one torch thread a process, Ctrl+C, no deadlines of hypothesis on a noisy machine."""

from __future__ import annotations

import signal

import torch
from hypothesis import settings

torch.set_num_threads(1)
# A shell that starts the tests in the background has them ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Loaded here, at the start: its plugin would else import it at the very end, where a crash hides the results.
settings.register_profile("ravnest", deadline=None)
settings.load_profile("ravnest")
