"""Files written all or nothing: a reader, or a rerun after a kill, finds the old content or the new, never a part of it."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PART = ".part"
"""End of a temporary file's name.  A leftover belongs to a process that was killed while it wrote."""


@contextmanager
def replacing(path: Path, sync: bool = False) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` once the block has written it.

    The temporary file is in the same folder; its name holds the process and the thread, so that several writers do not collide.
    sync: flush the content to the disk before the rename, so that a power cut cannot leave an empty file under the final name.
    A block that raises leaves `path` as it was, and no temporary file.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{PART}")
    with suppress(OSError):  # of a killed process that had the same number
        temporary.unlink()
    try:
        yield temporary
        if sync:
            flush_to_disk(temporary)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_text(path: Path, text: str, sync: bool = False) -> None:
    """Write a UTF-8 file all or nothing; see `replacing`."""
    with replacing(path, sync) as temporary:
        temporary.write_text(text, "utf-8")


def write_bytes(path: Path, content: bytes, sync: bool = False) -> None:
    """Write a binary file all or nothing; see `replacing`."""
    with replacing(path, sync) as temporary:
        temporary.write_bytes(content)


def flush_to_disk(path: Path) -> None:
    """Wait until the disk has the content of a file (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
