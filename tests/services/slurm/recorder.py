"""A real slurmctld with the real filter in it, and in the daemon's place one that keeps what it is asked."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

from slurm_hooks import wire
from tests.services.slurm.controller import Controller

FILTER = Path(__file__).parents[3] / "slurm_hooks" / "job_submit.lua"
CONFIG_LINE = 'local CONFIG = "/etc/secure-slurm/job_submit.conf.lua"'
GRES = "GresTypes=gpu\nLicenses=a:5\n"


class Recorder(Controller):
    """``asked``: the fields of each job, in order. Every job is refused, with ``words`` for a reason."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[dict[str, bytes]] = []
        self.words = "no"
        self.folder = Path(tempfile.mkdtemp())

    def more(self) -> str:
        return "JobSubmitPlugins=lua\n" + GRES

    def prepare(self) -> None:
        self.folder.chmod(0o755)
        path, config = self.folder / "decide.sock", self.folder / "job_submit.conf.lua"
        config.write_text(f'return {{socket="{path}", deadline=5, untagged_when_down="refuse", demand={{}}}}')
        source = FILTER.read_text()
        assert CONFIG_LINE in source
        Path("/etc/slurm/job_submit.lua").write_text(source.replace(CONFIG_LINE, f'local CONFIG = "{config}"'))
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        path.chmod(0o777)
        listening.listen()
        threading.Thread(target=self._accept, args=(listening,), daemon=True).start()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as file:
            while header := file.readline():
                fields = wire.decode_body(file.read(wire.decode_header(header)))
                answer = {"nonce": fields.pop("nonce"), "verdict": "refuse", "rule": "test.no", "message": self.words}
                self.asked.append(fields)
                connection.sendall(wire.encode({**answer, "advice": ""}))

    def submit(
        self, words: list[str], environ: Mapping[str, str], folder: Path, *, tool: str = "sbatch", stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        """Ask sbatch, in a folder and with an environment of its own."""
        return subprocess.run(
            [f"/usr/bin/{tool}", *words],
            input=stdin,
            capture_output=True,
            env=dict(environ),
            cwd=folder,
            check=False,
            timeout=120,
        )
