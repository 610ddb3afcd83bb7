"""The project folder, paths from recipes, and file digests."""

import hashlib
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
"""The folder that holds tasks/ and flows/."""


def user_path(text: str) -> Path:
    """Return a recipe's path: `~` expanded; relative to the working directory, else the project.

    This way, a recipe that names the project's data/train.jsonl runs from any working directory.
    """
    path = Path(text).expanduser()
    return path if path.is_absolute() or path.exists() or not (PROJECT / path).exists() else PROJECT / path


def sha256_file(path: Path) -> str:
    """SHA-256 digest of a file, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
