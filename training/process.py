"""What the system says of this process."""

from pathlib import Path
from typing import Final

STATUS: Final = Path("/proc/self/status")
"""Linux has it, other systems have not."""


def own_bytes(entry: str) -> int:
    """Read this process's memory: at present, VmRSS, or at most so far, VmHWM.

    `getrusage` would count the parent too: a child keeps its peak from before it became a Python of
    its own.
    """
    status = STATUS.read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith(entry))
    return int(line.split()[1]) * 1024
