"""Makes the plugin's modules importable, under the names that they have inside Triton."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "backends" / "temper"))
