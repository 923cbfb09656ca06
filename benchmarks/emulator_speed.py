"""Measure the AWS emulator: the time until it answers, and the calls per second of some operations.

    uv run python -m benchmarks.emulator_speed
    uv run python -m benchmarks.emulator_speed --endpoint http://127.0.0.1:4566

With an endpoint it measures the emulator that runs there, for example one of another version, to compare the
two. The calls come from 8 threads of this process, so the highest figures are limited by boto3 too.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final
from uuid import uuid4

import typer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from rich.console import Console
from rich.progress import track
from rich.table import Table

from embedded.aws_client import aws_client
from embedded.processes import HOST, choose_ports
from embedded.stack import running_emulator

THREADS: Final = 8

app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def main(
    endpoint: Annotated[str | None, typer.Option(help="The URL of a running emulator.")] = None,
    calls: Annotated[
        int, typer.Option(min=1, help="The calls of each operation that creates no key.")
    ] = 1000,
) -> None:
    """Print the time until the emulator answers, and the calls per second of each operation."""
    console = Console()
    if endpoint is not None:
        console.print(_measured(endpoint, calls, console))
        return
    with _started(console) as url:
        console.print(_measured(url, calls, console))


@contextmanager
def _started(console: Console) -> Iterator[str]:
    port, mqtt_port = choose_ports(0, 0)
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        with running_emulator(port, mqtt_port, Path(folder) / "aws.state", Path(folder) / "aws.log"):
            console.print(f"answers after {time.monotonic() - began:.2f} s")
            yield f"http://{HOST}:{port}"


def _measured(url: str, calls: int, console: Console) -> Table:
    iot, data, secrets = (aws_client(name, url) for name in ("iot", "iot-data", "secretsmanager"))
    run = uuid4().hex[:8]
    iot.create_thing(thingName=run)
    csr = _csr()
    operations: dict[str, tuple[int, Callable[[int], Any]]] = {
        "iot:CreateThing": (calls, lambda n: iot.create_thing(thingName=f"{run}-{n}")),
        "iot:DescribeThing": (calls, lambda _: iot.describe_thing(thingName=run)),
        "iot-data:UpdateThingShadow": (
            calls,
            lambda n: data.update_thing_shadow(thingName=f"{run}-{n}", payload='{"state":{"reported":{}}}'),
        ),
        "secretsmanager:CreateSecret": (
            calls,
            lambda n: secrets.create_secret(Name=f"{run}-{n}", SecretString="s"),
        ),
        "iot:CreateCertificateFromCsr": (
            calls // 5 or 1,
            lambda _: iot.create_certificate_from_csr(certificateSigningRequest=csr),
        ),
        "iot:CreateKeysAndCertificate": (calls // 10 or 1, lambda _: iot.create_keys_and_certificate()),
    }
    table = Table("operation", "calls", "calls per second")
    for name, (count, call) in track(operations.items(), "measuring", console=console, transient=True):
        with ThreadPoolExecutor(THREADS) as threads:
            began = time.monotonic()
            list(threads.map(call, range(count)))
            table.add_row(name, str(count), f"{count / (time.monotonic() - began):.0f}")
    return table


def _csr() -> str:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "device")])
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode()


if __name__ == "__main__":
    app()
