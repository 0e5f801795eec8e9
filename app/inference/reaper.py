"""Runs one command, and ends it with all its processes when the parent process ends, also by SIGKILL.

    python -S -E reaper.py --parent PID --log FILE --shm PREFIX --grace SECONDS --set NAME=VALUE -- command...

Uses only the standard library. `embedded.EmbeddedTriton` starts it with a pipe as stdin that carries no data: end of
file means that the parent closed it or died, also by SIGKILL. It prints the command's process id as its only line, runs
until the command ends, and ends with the command's exit code (128 + signal if it was killed).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
LOG_LIMIT = 16 * 1024 * 1024
"""Bytes from which the log is cut."""
LOG_KEPT = 1024 * 1024
"""Bytes of its end that a cut log keeps."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main() -> int:
    options = _options()
    wake_read, wake_write = os.pipe()
    for end in (wake_read, wake_write):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake_write)
    for number in (*SIGNALS, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)

    with open(options.log, "ab") as log:
        child = subprocess.Popen(
            options.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Nothing is inherited, so that the service's secrets stay with the service.
            env=dict(pair.split("=", 1) for pair in options.set),
            start_new_session=True,
            preexec_fn=_die_with_reaper,
        )
    print(child.pid, flush=True)
    # The parent reads no further; a closed pipe must not end the reaper.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        while child.poll() is None and not _asked_to_end(wake_read, options.parent):
            _bound_log(options.log)
        _end(child, options.grace)
    finally:
        sweep(options.shm)
    code = child.wait()
    return code if code >= 0 else 128 - code


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--parent",
        type=int,
        required=True,
        help="the parent's process id, to notice its end",
    )
    parser.add_argument("--log", type=Path, required=True, help="takes the command's output, appended")
    parser.add_argument("--shm", required=True, help="prefix of files in /dev/shm that are removed at the end")
    parser.add_argument("--grace", type=float, default=5.0, help="seconds between SIGTERM and SIGKILL")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="the command's environment")
    parser.add_argument("command", nargs="+")
    return parser.parse_args()


def _die_with_reaper() -> None:
    """Runs in the child before exec. If the reaper itself is killed, the kernel ends the command."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _asked_to_end(wake: int, parent: int) -> bool:
    """Waits up to a second for the parent's end or a signal (then True), or for the child's end."""
    readable, _, _ = select.select([0, wake], [], [], 1.0)
    if wake in readable:
        signals = os.read(wake, 64)
        if any(number in signals for number in SIGNALS):
            return True
    if 0 in readable and not os.read(0, 64):
        return True
    # A fork of the parent may still hold the pipe open; then a new parent process id is the sign.
    return os.getppid() != parent


def _end(child: subprocess.Popen[bytes], grace: float) -> None:
    """Sends SIGTERM to the command, and SIGKILL to the rest of its group once it ended or `grace` seconds passed."""
    if child.poll() is None:
        # Only the server first, because it stops its backend processes in order.
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(grace)
    for _ in range(100):
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        except PermissionError:  # only zombies are left
            return
        if child.poll() is not None and not _alive(child.pid):
            return
        time.sleep(0.02)


def _alive(group: int) -> bool:
    """Whether a process of the group still runs; a zombie that init has not collected does not."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            return True
    return False


def sweep(prefix: str) -> None:
    """Removes the shared memory files with this prefix; a process that has one mapped keeps its mapping."""
    for region in Path("/dev/shm").glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            region.unlink()


def _bound_log(path: Path) -> None:
    """Cuts a log that is longer than its limit to its last part. The child appends, so it continues at the new end."""
    with contextlib.suppress(OSError):
        if path.stat().st_size <= LOG_LIMIT:
            return
        with path.open("r+b") as log:
            log.seek(-LOG_KEPT, os.SEEK_END)
            kept = log.read()
            log.seek(0)
            log.truncate()
            log.write(kept)


if __name__ == "__main__":
    sys.exit(main())
