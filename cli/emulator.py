"""The AWS emulator alone, for `thingbridge emulator`."""

import shlex
import signal
import tempfile
from pathlib import Path

from cli.output import standard_output
from domain.operator_error import OperatorError
from embedded import REGION
from embedded.emulator_control import AWS_QUOTAS, EmulatorControl, ca_file
from embedded.processes import HOST, ServerError, end_of_log, is_free
from embedded.stack import running_emulator


def run_emulator(port: int, mqtt_port: int, state: Path | None, *, quotas: bool) -> None:
    """Run the emulator until SIGTERM or Ctrl-C, with the default quotas of AWS if `quotas` is true.

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
            with running_emulator(port, mqtt_port, file, log_file) as process:
                if quotas:
                    EmulatorControl(f"http://{HOST}:{port}").limit(AWS_QUOTAS)
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
