"""Peak memory of a process."""

from contextlib import suppress
from pathlib import Path


def peak_memory(pid: int | None = None) -> int | None:
    """Return the peak resident size of a process and its children, bytes; None if unknown.

    pid: None for this process.
    Mapped weights are included.  Not getrusage's ru_maxrss: on Linux a child inherits that figure from its parent.
    """
    import psutil

    with suppress(psutil.Error):
        family = [psutil.Process(pid)]
        family += family[0].children(recursive=True)
        peaks = [peak for process in family if (peak := _peak(process.pid)) is not None]
        return sum(peaks) if peaks else None
    return None


def _peak(pid: int) -> int | None:
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
        found = [line for line in lines if line.startswith("VmHWM:")]
        return int(found[0].split()[1]) * 1024 if found else None
    return None
