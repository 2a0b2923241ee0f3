"""A cluster of one's own machines, for real: sshd on a loopback address, `ray up`, launches on it, `ray down`.

Run in namespaces of its own for processes, mounts and network: `ray up` and `ray down` stop every Ray that they see,
Ray's launcher knows ssh at port 22 only, and what it leaves in /tmp/ray would meet the next cluster. The first process
in there is a shell, which buries the dead as an init does: `ray stop` waits for them.
"""

from __future__ import annotations

import fcntl
import getpass
import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from helpers import ROOT
from helpers.launches import RAY
from helpers.programs import listens, wait_for
from helpers.sweeps import write_sweep

HOST = "127.0.0.1"
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
APART = [
    "unshare",
    "--pid",
    "--fork",
    "--mount-proc",
    "--mount",
    "--net",
    "--kill-child",
    "sh",
    "-c",
    '"$@"; exit $?',
    "sh",
]
SECONDS = 240  # for a command at most
ONLY_IN_THE_CLOUD = ("available_node_types", "head_node_type", "docker")


def on_premises(cluster: dict[str, Any], key: Path) -> dict[str, Any]:
    """cluster.yaml's variant for machines reached by ssh, as its comments say; the package is already there."""
    kept = {name: value for name, value in cluster.items() if name not in ONLY_IN_THE_CLOUD}
    reached = {
        "provider": {"type": "local", "head_ip": HOST, "worker_ips": []},
        "auth": {"ssh_user": getpass.getuser(), "ssh_private_key": str(key)},
    }
    return kept | reached | {"setup_commands": []}


def separate(folder: Path) -> None:
    """Bring the loopback device of this network up, and hide other clusters' files from this one's."""
    with socket.socket() as any_socket:  # SIOCSIFFLAGS with IFF_UP and IFF_RUNNING
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh", b"lo", 0x41))
    for name in ("/tmp/ray", "/run"):
        Path(name).mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", name], check=True)
    Path("/run/sshd").mkdir()
    (folder / "home").mkdir()


def start_sshd(folder: Path) -> Path:
    """sshd with keys of its own, and a home in the folder for who logs in. Returns the key to log in with."""
    for name in ("host", "login"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    home = folder / "home"
    (home / ".bashrc").write_text(
        f"export PATH={Path(sys.executable).parent}:$PATH TINYSCALE_CACHE={os.environ['TINYSCALE_CACHE']}\n"
        "export PYTHONPATH=~/tinyscale\n"  # where file_mounts brings the working copy
    )
    settings = {
        "ListenAddress": HOST,
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "login.pub",
        "StrictModes": "no",  # keys under a temporary folder
        "PidFile": "none",
        "SetEnv": f"HOME={home}",
    }
    (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(folder / "sshd_config")])  # ends with the namespace
    wait_for(lambda: listens(22))
    return folder / "login"


def run(*command: str | Path) -> str:
    """A command's output, also shown; it must succeed."""
    print("+", *command, flush=True)
    done = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SECONDS
    )
    print(done.stdout, flush=True)
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}"
    return done.stdout


def main() -> None:
    folder = Path(sys.argv[1])
    separate(folder)
    key = start_sshd(folder)
    os.environ["HOME"] = str(folder / "home")
    os.chdir(ROOT)  # cluster.yaml's file_mounts are relative to it
    config, yaml = folder / "cluster.yaml", YAML(typ="safe")
    yaml.dump(on_premises(yaml.load(Path("cluster.yaml").read_text()), key), config)
    launch = [sys.executable, "-m", "tinyscale", "launch", "-y", "--quiet"]
    results = ["--results", folder / "results"]
    run(RAY, "up", "-y", "--no-config-cache", config)
    try:
        attached = run(*launch, write_sweep(folder, widths="[8]"), *results, "--address", f"{HOST}:6379")
        assert "starting Ray" not in attached
        sweep = write_sweep(folder, widths="[8, 12, 16, 20]")
        run(RAY, "job", "submit", "--address", f"http://{HOST}:8265", "--", *launch, sweep, *results)
        run(sys.executable, "-m", "tinyscale", "fit", folder / "results")
    finally:
        run(RAY, "down", "-y", config)
    assert not listens(6379), "Ray still runs"


if __name__ == "__main__":
    main()
