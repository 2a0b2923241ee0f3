"""The pictures of the README: `python docs/screenshots.py` runs a launch in a terminal and a browser over a report.

docs/launch.svg is the live view of sweeps/quickstart.yaml with fewer tokens; docs/report.png is the top of the report
of results/sotu. Needs Chromium, and two minutes on two cores.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
COLUMNS, LINES = 100, 24
CLEAR_LINE, UP = "\x1b[2K", "\x1b[1A"


def record_launch(folder: Path) -> str:
    """All that a launch writes to a terminal of COLUMNS by LINES."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    options = ["--set", "tokens_budget=500K", "--set", "lr=3e-2", "--results", str(folder)]
    command = [sys.executable, "-m", "tinyscale", "launch", "-y", "sweeps/quickstart.yaml", *options]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(LINES)}
    program = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    written = b""
    while True:
        try:
            written += os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
    if program.wait():
        raise SystemExit(f"the launch failed:\n{written.decode(errors='replace')}")
    return written.decode(errors="replace")


def frames(written: str) -> list[str]:
    """The states of the live view, each between two moves of the cursor back to its top."""
    return [part.replace(CLEAR_LINE, "").strip("\r\n") for part in written.split(CLEAR_LINE + UP) if "running" in part]


def main() -> None:
    """Write docs/launch.svg and docs/report.png."""
    with tempfile.TemporaryDirectory() as folder:
        seen = frames(record_launch(Path(folder) / "results"))
        last = [frame for frame in seen if ", 2 running" in frame and frame.count("loss ") >= 2][-1]
        console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
        console.print(Text.from_ansi(last.replace("\r\n", "\n")))
        console.save_svg(str(ROOT / "docs" / "launch.svg"), title="tinyscale launch sweeps/quickstart.yaml")
        shutil.copytree(ROOT / "results" / "sotu", Path(folder) / "results" / "sotu")
        subprocess.run([sys.executable, "-m", "tinyscale", "report", "results/sotu"], cwd=folder, check=True)
        chromium = shutil.which("chromium") or "google-chrome"
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1100,900"]
        picture = f"--screenshot={ROOT}/docs/report.png"
        subprocess.run(
            [chromium, *options, picture, f"file://{folder}/results/sotu/report.html"], check=True, capture_output=True
        )


if __name__ == "__main__":
    main()
