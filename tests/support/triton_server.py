"""Triton Inference Server in a process of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
START_S = 120


@dataclass(frozen=True, kw_only=True)
class Server:
    http: int
    grpc: int
    metrics: int


def server_command(packages: Path, folder: Path, ports: Server) -> list[str]:
    home = packages / "pytriton" / "tritonserver"
    python = packages.parent.name.removeprefix("python")
    backend = folder / "backends" / "python"
    shutil.copytree(home / "backends" / "python", backend)
    stub = shutil.copy(home / "python_backend_stubs" / python / "triton_python_backend_stub", backend)
    Path(stub).chmod(0o755)
    program = shutil.copy(home / "bin" / "tritonserver", folder / "tritonserver")
    Path(program).chmod(0o755)
    options = {
        "model-repository": folder / "models",
        "backend-directory": folder / "backends",
        **{f"{name}-address": "127.0.0.1" for name in ("http", "grpc", "metrics")},
        **{f"{name}-port": getattr(ports, name) for name in ("http", "grpc", "metrics")},
    }
    return [str(program), *(f"--{name}={value}" for name, value in options.items())]


def server_environment(packages: Path, folder: Path) -> dict[str, str]:
    libraries = [str(sysconfig.get_config_var("LIBDIR")), str(packages / "nvidia_pytriton.libs")]
    return {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        "P4Q_EDGE_PATH": os.pathsep.join([str(REPOSITORY / "runtime"), str(packages)]),
        "P4Q_EDGE_CACHE": str(folder / "cache"),
    }


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
        return number


def wait_until_ready(process: subprocess.Popen[bytes], ports: Server, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{ports.http}/v2/health/ready", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])
