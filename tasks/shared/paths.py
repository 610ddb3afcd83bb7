"""The project's folder, paths as a recipe gives them, and digests of files."""

import hashlib
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
"""The folder that holds tasks/ and flows/."""


def user_path(text: str) -> Path:
    """Return a path from a recipe: `~` is the home folder; a relative one is looked for here, then in the project's folder.

    So a recipe that names data/train.jsonl of the project runs from any working directory, and with DVC, which runs in the project's.
    """
    path = Path(text).expanduser()
    return path if path.is_absolute() or path.exists() or not (PROJECT / path).exists() else PROJECT / path


def sha256_file(path: Path) -> str:
    """Digest of a file, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
