"""The processes in which Triton's Python backend runs its models, and whether they are all still there and run.

Triton itself does not notice when one of them ends: it goes on to say that it is ready, and every frame that falls
to that process fails. Linux only, as the embedded server is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_NAME = "triton_python_b"  # the kernel keeps 15 letters of it


@dataclass(frozen=True, slots=True)
class Stub:
    pid: int
    started: str
    """In clock ticks since the machine did: another process of the same number began later."""
    model: str

    @property
    def alive(self) -> bool:
        stat = _stat(self.pid)
        return stat is not None and stat[0] not in "ZX" and stat[19] == self.started


def stubs_of(server: int) -> tuple[Stub, ...]:
    """The backend processes that a server has now; none where its models run inside itself."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        stat = _stat(pid)
        if stat is None or stat[1] != str(server):
            continue
        try:
            if (folder / "comm").read_text().strip() != _NAME:
                continue
            arguments = (folder / "cmdline").read_text(errors="replace").split("\0")
        except OSError:  # it ended meanwhile
            continue
        # The second is MODEL/VERSION/model.py in the repository.
        model = Path(arguments[1]).parent.parent.name if len(arguments) > 1 else "?"
        found.append(Stub(pid, stat[19], model))
    return tuple(found)


def stopped(pid: int) -> bool:
    """Whether a signal has stopped a process (SIGSTOP); one that a debugger looks at is not."""
    stat = _stat(pid)
    return stat is not None and stat[0] == "T"


def _stat(pid: int) -> list[str] | None:
    """Fields of proc(5)'s stat from the third, the state, on; None where there is no such process."""
    try:
        # The second may hold spaces and ends with the last parenthesis.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
