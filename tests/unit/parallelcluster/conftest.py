from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.testbed.pcluster_examples import Example, copy_of


@pytest.fixture
def example(tmp_path: Path) -> Callable[[str], Example]:
    """The files of a shipped example, in a folder that passes the checks whatever the umask of the developer is."""
    tmp_path.chmod(0o755)

    def copied(name: str) -> Example:
        return copy_of(name, tmp_path)

    return copied
