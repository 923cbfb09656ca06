"""Run one command and stop it when the process that started it ends.

The starter holds the other end of standard input. When that end is written to or closed, because the starter
requested a stop, ended or was killed, this script sends the stop signal to the command, and kills the command
if it does not end in time. A pipe works the same on Linux and macOS, and it also detects a SIGKILL of the
starter.

It runs as a script, isolated from the environment, and therefore imports only the standard library.
"""

import argparse
import os
import pwd
import shutil
import signal
import subprocess
import sys
import threading


def main() -> int:
    """Run the command given by the arguments, and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stop-signal", required=True, help="the signal to send, e.g. SIGTERM")
    parser.add_argument("--grace-seconds", required=True, type=float, help="seconds before it is killed")
    parser.add_argument("--user", help="the user to run the command as; needs root")
    parser.add_argument("--remove", help="a directory to delete when the command has ended")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    stop_signal = signal.Signals[arguments.stop_signal]

    child = subprocess.Popen(
        arguments.command,
        stdin=subprocess.DEVNULL,
        user=arguments.user,
        group=pwd.getpwnam(arguments.user).pw_gid if arguments.user else None,
        extra_groups=[] if arguments.user else None,
    )

    def stop_when_input_ends() -> None:
        os.read(sys.stdin.fileno(), 1)
        child.send_signal(stop_signal)
        try:
            child.wait(arguments.grace_seconds)
        except subprocess.TimeoutExpired:
            child.kill()

    signal.signal(signal.SIGTERM, lambda *_: child.send_signal(stop_signal))
    threading.Thread(target=stop_when_input_ends, daemon=True).start()
    code = child.wait()
    if arguments.remove:
        shutil.rmtree(arguments.remove, ignore_errors=True)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
