"""Runs one command that must not outlive whoever started it.

The starter holds the other end of our standard input. When that closes, because it asked for a stop,
ended or was killed, the command is sent its stop signal, and killed if it does not end in time. A pipe
does this alike on Linux and macOS, and not even a SIGKILL of the starter gets past it.

It is run as a script, isolated from the environment, and so imports the standard library alone.
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
    """Run the command of the arguments, and answer with its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stop-signal", required=True, help="what asks the command to end, e.g. SIGTERM")
    parser.add_argument("--grace-seconds", required=True, type=float, help="how long it may take to end")
    parser.add_argument("--user", help="the user to run the command as; needs root")
    parser.add_argument("--remove", help="a directory that goes when the command has ended")
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
