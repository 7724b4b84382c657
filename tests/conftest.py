"""What holds for every test."""

from __future__ import annotations

import os

# As `inspectbus` itself does, before anything loads torch: threads that wait for each other sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
