"""What several guests found, as one file: ``python3 -m tests.faults.join OUT.json PART.json...``.

Files with ``cells`` are put in a row; of those of a soak the numbers are added up, the seconds are the longest.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def join_faults(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """All cells."""
    return {"cells": [cell for part in parts for cell in part["cells"]]}


def join_soak(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The numbers of all, and each guest's own words beside them."""
    added = {
        name: sum(part[name] for part in parts) for name in ("jobs", "leftovers", "wrong_drains", "faults_injected")
    }
    return {
        **added,
        "audit_verified": all(part["audit_verified"] for part in parts),
        "seconds": max(part["seconds"] for part in parts),
        "guests": parts,
    }


def main(arguments: list[str]) -> int:
    """0 if there is anything to write."""
    out, *files = map(Path, arguments)
    parts = [json.loads(file.read_text()) for file in files]
    joined = join_faults(parts) if "cells" in parts[0] else join_soak(parts)
    out.write_text(json.dumps(joined, indent=1) + "\n")
    if "cells" in joined:
        cells = joined["cells"]
        bad = sum(bool(cell.get("problems")) for cell in cells)
        print(f"{out}: {len(cells)} cells, {sum(cell['clean'] for cell in cells)} clean, {bad} not as expected")
    else:
        print(f"{out}: " + ", ".join(f"{name} {value}" for name, value in joined.items() if name != "guests"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
