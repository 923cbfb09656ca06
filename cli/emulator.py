"""The AWS emulator alone, for `thingbridge emulator`."""

import os
import shlex
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli.output import standard_output
from domain.operator_error import OperatorError
from embedded import REGION
from embedded.processes import (
    HOST,
    ServerError,
    ServerProcess,
    end_of_log,
    ignoring_interrupts,
    is_free,
    is_ok,
)
from embedded.stack import ca_file, emulator_command, server_environment


def run_emulator(port: int, mqtt_port: int, state: Path | None) -> None:
    """Run the emulator until SIGTERM or Ctrl-C.

    Raises:
        OperatorError: the port is in use, or the state cannot be kept in that file, or the emulator stopped.
    """
    for option, chosen in (("--port", port), ("--mqtt-port", mqtt_port)):
        if not is_free(chosen):
            raise OperatorError(
                f"cannot listen on {HOST}, port {chosen}: it is in use; choose another {option}"
            )
    if state is not None:
        _require_writable(state)
    # SIGTERM ends the command like Ctrl-C, so that the temporary folder is removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="thingbridge-emulator-") as folder:
        log_file = Path(folder) / "emulator.log"
        try:
            file = (state or Path(folder) / "aws.state").absolute()
            with _running(port, mqtt_port, file, log_file) as process:
                standard_output().print(
                    f"AWS emulator at http://{HOST}:{port}, until Ctrl-C. In another shell:\n"
                    f"export AWS_ENDPOINT_URL=http://{HOST}:{port}\n"
                    f"export AWS_REGION={REGION} AWS_ACCESS_KEY_ID=embedded AWS_SECRET_ACCESS_KEY=embedded\n"
                    f"A device that has its certificate and key, and whose Thing is NAME:\n"
                    f"mosquitto_pub -h localhost -p {mqtt_port} --cafile {shlex.quote(str(ca_file(file)))}"
                    " --cert NAME.pem --key NAME.key -i NAME -q 1 -t '$aws/things/NAME/shadow/update'"
                    """ -m '{"state": {"reported": {"on": true}}}'""",
                    soft_wrap=True,
                )
                process.wait_stopped()
                raise OperatorError(f"the AWS emulator stopped by itself. {end_of_log(log_file)}")
        except KeyboardInterrupt:
            return
        except ServerError as error:
            raise OperatorError(str(error)) from None


@contextmanager
def _running(port: int, mqtt_port: int, state: Path, log_file: Path) -> Iterator[ServerProcess]:
    """Start the emulator, and stop it at the end."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    process = ServerProcess(
        "the AWS emulator",
        emulator_command(port, mqtt_port, state),
        log_file,
        environment=server_environment(),
        keep_open=nothing,
    )
    try:
        process.wait_until(lambda: is_ok(port, "/_emulator/calls"))
        yield process
    finally:
        with ignoring_interrupts():
            process.request_stop()
            process.wait_stopped()
        os.close(nothing)


def _require_writable(state: Path) -> None:
    """Check that the file can be written, before the first change of the account would be lost.

    Raises:
        OperatorError: it is a folder, or cannot be written.
    """
    try:
        if state.is_dir():
            raise OperatorError(f"cannot write {state}: it is a folder; give --state a file")
        state.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=state.parent):
            pass
    except OSError as error:
        raise OperatorError(f"cannot write {state}: {error.strerror}; give --state another file") from None
