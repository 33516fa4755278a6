"""Settings of the whole suite. Its place matters too: it puts this folder on the import path, for `fake_openai`."""

from __future__ import annotations

import os
import signal

import torch
from hypothesis import settings

# Read when Triton is imported, which any library may do: without a GPU kernels are interpreted.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# A deadline an example measures how busy the machine is, not whether the code is right.
settings.register_profile("openzaya", deadline=None)
settings.load_profile("openzaya")

# A shell starts background jobs with SIGINT ignored, and programs that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
