"""Settings of the whole suite. Its place matters too: it puts this folder on the import path, for `fake_openai`."""

from __future__ import annotations

from hypothesis import settings

# A deadline an example measures how busy the machine is, not whether the code is right.
settings.register_profile("openzaya", deadline=None)
settings.load_profile("openzaya")
