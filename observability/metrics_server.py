"""An HTTP server for the metrics of a worker."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from observability.exposition import METRICS_CONTENT_TYPE, MetricsAddressError, exposition


@contextmanager
def serving_metrics(host: str, port: int) -> Iterator[None]:
    """Serve `GET /metrics`, and `GET /healthz`, which answers while the process lives.

    Raises:
        MetricsAddressError: the address cannot be listened on.
    """
    try:
        server = ThreadingHTTPServer((host, port), _RequestHandler)
    except OSError as error:
        raise MetricsAddressError(
            f"IOT_AWS_TELEMETRY__METRICS_PORT: {host}:{port} cannot be listened on: {error.strerror}"
        ) from None
    thread = Thread(target=server.serve_forever, name="metrics")
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _RequestHandler(BaseHTTPRequestHandler):
    # A client that connects and sends nothing must not occupy a thread for ever.
    timeout = 10

    def do_GET(self) -> None:
        routes: Mapping[str, Callable[[], bytes]] = {"/metrics": exposition, "/healthz": lambda: b"ok\n"}
        route = routes.get(self.path.partition("?")[0])
        body = route() if route else b"the paths are /metrics and /healthz\n"
        self.send_response(HTTPStatus.OK if route else HTTPStatus.NOT_FOUND)
        self.send_header("Content-Type", METRICS_CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log nothing: there is a scrape every few seconds."""
