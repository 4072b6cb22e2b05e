"""Makes the checkout importable, however pytest was started (--import-mode=importlib adds nothing to sys.path)."""

import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[1])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)
