"""The commands that run a process of the bridge: `worker`, `api`, `codec`."""

import re
import socket
from typing import Annotated

import typer

from domain.operator_error import OperatorError

Host = Annotated[str, typer.Option(help="The address to listen on.")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")]


def worker() -> None:
    """Run a worker, until SIGTERM or Ctrl-C.

    It then lets the running activities end, for
    IOT_AWS_WORKER__SHUTDOWN_GRACE_SECONDS. Needs DATABASE_URL,
    IOT_AWS_PROVISIONING__DEVICE_POLICY_NAME, AWS_REGION, and the database and
    namespace as `thingbridge migrate` prepares them.
    """
    import asyncio

    from settings import Settings

    settings = Settings.load()

    from worker import configure_telemetry, serve

    configure_telemetry(settings)
    asyncio.run(serve(settings))


def api(host: Host = "127.0.0.1", port: Port = 8080) -> None:
    """Serve the HTTP API.

    The endpoints under /api need a key (`thingbridge keys`); /docs describes
    them. Liveness is at /healthz; readiness, with the state of each dependency,
    at /readyz; metrics for Prometheus at /metrics. Needs DATABASE_URL.
    """
    from settings import ApiSettings

    settings = ApiSettings.load()
    _require_free(host, port)

    from api.server import serve
    from observability import telemetry

    telemetry.configure(settings.log.level, settings.log.format, measured=True)
    serve(settings, host, port)


def codec(
    host: Host = "127.0.0.1",
    port: Port = 8081,
    ui_origin: Annotated[
        str | None,
        typer.Option(
            metavar="ORIGIN",
            help="The origin of Temporal's UI, https://HOST or http://HOST:PORT, whose pages may call; "
            "default: none.",
        ),
    ] = None,
) -> None:
    """Serve the codec server, which decrypts payloads.

    Temporal's UI and command line show encrypted payloads with it. Needs
    IOT_AWS_ENCRYPTION__KEYS and DATABASE_URL; see docs/encryption.md.
    """
    if ui_origin is not None and not re.fullmatch(r"https?://[a-z0-9.:\[\]-]+", ui_origin):
        raise typer.BadParameter("must be an origin, without a path", param_hint="--ui-origin")

    from settings import CodecSettings

    settings = CodecSettings.load()
    _require_free(host, port)

    from api.codec import create_codec_app
    from api.server import serve_app
    from observability import telemetry

    telemetry.configure(settings.log.level, settings.log.format)
    serve_app(create_codec_app(settings, ui_origin), host, port)


def _require_free(host: str, port: int) -> None:
    """Check that a server can listen on an address. (uvicorn would log the reason, but not what to do.)

    Raises:
        OperatorError: another process listens there, or the host is not an address of this machine.
    """
    try:
        # Without a host, a server listens on every address.
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as listener:
            # As servers do, so that connections of an earlier process that are still closing do not count,
            # and another process may have the same port in IPv4.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
            listener.listen()
    except OSError as error:
        raise OperatorError(
            f"cannot listen on {host}, port {port}: {error.strerror}; choose another --host or --port"
        ) from None
