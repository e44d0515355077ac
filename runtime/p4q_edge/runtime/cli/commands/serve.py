"""`p4q-edge serve`: a page with a camera, and classification over HTTP."""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from p4q_edge.runtime.choices import CpuBackend
from p4q_edge.runtime.cli.arguments import name_or_path
from p4q_edge.runtime.cli.command import Command, Output, add_backend, add_placement
from p4q_edge.runtime.errors import EnvironmentNotAbleError

if TYPE_CHECKING:
    from p4q_edge.runtime.cli.service_documents import ServeDocument
    from p4q_edge.runtime.http import ServeOptions

LIBRARIES = ("starlette", "uvicorn", "python_multipart")
_MAX_IMAGE_MB = 16
_EVERY_ADDRESS = ("0.0.0.0", "::")


@dataclass(frozen=True, kw_only=True)
class ServeRequest:
    """What `serve` was asked for."""

    engine: Path
    host: str
    port: int
    token_file: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    certificate: Path | None = None
    key: Path | None = None
    read_only: bool = False
    requests: int = 128
    max_image_mb: int = _MAX_IMAGE_MB
    head: str | None = None
    device: str = "auto"
    threads: int | None = None
    backend: CpuBackend | None = None


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, help="engine (.onnx or .plan) with its card beside it")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="port; 0 takes a free one (default: %(default)s)")
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="token that clients must send (default: the environment's P4Q_EDGE_TOKEN); needed where others reach the "
        "host",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="also answer requests to this host name, as a proxy sends them; may be repeated",
    )
    parser.add_argument("--tls-certificate", type=Path, metavar="FILE", help="serve HTTPS with this certificate (PEM)")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="private key of the certificate (PEM)")
    parser.add_argument("--read-only", action="store_true", help="do not let clients teach, choose or save heads")
    parser.add_argument(
        "--requests", type=int, default=128, help="requests handled at once; others get 503 (default: %(default)s)"
    )
    parser.add_argument(
        "--max-image-mb", type=int, default=_MAX_IMAGE_MB, help="largest request in megabytes (default: %(default)s)"
    )
    parser.add_argument("--head", type=name_or_path, help="head to start with: a name, or a file (.safetensors)")
    add_placement(parser)
    add_backend(parser)


def _request(args: argparse.Namespace) -> ServeRequest:
    return ServeRequest(
        engine=args.engine,
        host=args.host,
        port=args.port,
        token_file=args.token_file,
        allowed_hosts=tuple(args.allow_host),
        certificate=args.tls_certificate,
        key=args.tls_key,
        read_only=args.read_only,
        requests=args.requests,
        max_image_mb=args.max_image_mb,
        head=args.head,
        device=args.device,
        threads=args.threads,
        backend=args.backend,
    )


def _run(request: ServeRequest, output: Output) -> int:
    _require_libraries()
    from p4q_edge.runtime.classification import RuntimeOptions, ZeroShotClassifier
    from p4q_edge.runtime.http import listen, make_app, run_server, url_of

    options = _options(request)
    # Before the engine is loaded: a port that is taken shows at once.
    with listen(options) as sock:
        loaded = ZeroShotClassifier(
            request.engine,
            heads=request.head,
            device=request.device,
            options=RuntimeOptions(threads=request.threads, backend=request.backend),
        )
        with loaded as classifier:
            app = make_app(classifier, request.engine, options)
            url = url_of(sock, options)
            document, text = _document(request, options, url), _words(url, options.host)
            _let_requests_end()
            run_server(app, sock, options, ready=lambda: output.write(document=document, text=text))
    return 0


def _words(url: str, host: str) -> str:
    where = ", on another machine with this one's name or address" if host.strip("[]") in _EVERY_ADDRESS else ""
    return f"{url}  open it in a browser{where}; Ctrl-C stops the server"


def _require_libraries() -> None:
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise EnvironmentNotAbleError(
            f"p4q-edge serve needs {', '.join(missing)}, which this Python lacks. "
            "Run: pip install 'p4q-edge-runtime[serve]'"
        )


def _options(request: ServeRequest) -> ServeOptions:
    from p4q_edge.runtime.http import MIB, Limits, ServeOptions, read_token

    return ServeOptions(
        host=request.host,
        port=request.port,
        token=read_token(request.token_file),
        allowed_hosts=request.allowed_hosts,
        certificate=request.certificate,
        key=request.key,
        read_only=request.read_only,
        limits=Limits(requests=request.requests, body_bytes=request.max_image_mb * MIB),
    )


def _let_requests_end() -> None:
    """Take back what ends every other command 1.5 s after a signal: answers that are under way may take longer."""
    if os.name == "posix":
        signal.set_wakeup_fd(-1)


def _document(request: ServeRequest, options: ServeOptions, url: str) -> ServeDocument:
    from p4q_edge.runtime.cli.service_documents import ServeDocument

    return ServeDocument(
        engine=str(request.engine),
        url=url,
        token=options.token is not None,
        read_only=options.read_only,
        process=os.getpid(),
    )


COMMAND = Command(add_arguments=_add_arguments, request=_request, run=_run)
