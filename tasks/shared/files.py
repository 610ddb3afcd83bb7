"""Atomic writes: readers and reruns see a file's old content or its new one, never a part."""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PART = ".part"
"""Suffix of temporary files.  A leftover comes from a process that was killed while it wrote."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a disk or a quota without room."""


def full_disk(error: BaseException | None) -> OSError | None:
    """Return the error of a full disk, if this is one or was caused by one.

    Libraries in Rust raise classes of their own (safetensors SafetensorError, tokenizers Exception), and only their text has the number.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error
        for number in FULL:
            if f"(os error {number})" in str(error):
                return OSError(number, os.strerror(number))
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def replacing(path: Path, sync: bool = False) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` when the block ends.

    The temporary file is in the same folder; its name contains process and thread ids, so that writers do not collide.
    sync: flush the content to disk before the rename, so that a power cut cannot leave an empty file under the final name.
    If the block raises, `path` stays as it was and the temporary file is removed.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{PART}")
    with suppress(OSError):  # left by a killed process with the same pid
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
    """Write a UTF-8 file atomically; see `replacing`."""
    with replacing(path, sync) as temporary:
        temporary.write_text(text, "utf-8")


def write_bytes(path: Path, content: bytes, sync: bool = False) -> None:
    """Write a binary file atomically; see `replacing`."""
    with replacing(path, sync) as temporary:
        temporary.write_bytes(content)


def flush_to_disk(path: Path) -> None:
    """Flush a file's content to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
