"""Cost of checking that a large artifact is unchanged: sparse files, read then stat'ed.

python -m bench.digests                          100 GB in files of 4 GB, as a sharded model has; about two minutes
python -m bench.digests --gigabytes 10 --files 1000
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tasks.shared.store.keys import Digests

LOOKS = 5


def grow(folder: Path, files: int, size: int) -> None:
    """Create sparse files, which take no disk space but are read like any other."""
    folder.mkdir()
    for number in range(files):
        path = folder / f"model-{number:05}.safetensors"
        with path.open("wb") as stream:
            stream.truncate(size)
        os.utime(path, (10**9, 10**9))  # older than the resolution of the clock, like artifacts


def timed(memory: Path, folder: Path) -> float:
    """Seconds of one check: load the remembered digests, stat every file, save them."""
    started = time.perf_counter()
    digests = Digests(memory)
    digests.tree(folder)
    digests.save()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=100.0)
    parser.add_argument("--files", type=int, default=25)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, memory = Path(name) / "artifact", Path(name) / "memory.json"
        grow(folder, options.files, int(options.gigabytes * 1e9 / options.files))
        first = timed(memory, folder)
        again = [timed(memory, folder) for _ in range(LOOKS)]
    table = Table(title=f"{options.gigabytes:g} GB in {options.files} files")
    for column in ("first look, s", f"later looks, s: median (range) of {LOOKS}", "GB/s read"):
        table.add_column(column, justify="right")
    spread = f"{statistics.median(again):.4f} ({min(again):.4f} to {max(again):.4f})"
    table.add_row(f"{first:.1f}", spread, f"{options.gigabytes / first:.2f}")
    console = Console()
    console.print(table)
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
