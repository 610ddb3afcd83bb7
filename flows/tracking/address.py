"""Address of the tracking server, and masking of its credentials."""

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tasks.shared.errors import ConfigError

MASK = "***"
_USERINFO = re.compile(r"(?<=://)[^/\s'\"]*(?=@)")
_SECRET_FIELD = re.compile(r"(?i)\b((?:\w*password|passwd|pwd|\w*token|\w*secret\w*|api_?key)=)[^&\s'\"]+")
_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


def resolve_uri(configured: str, root: Path, where: str = "tracking.uri") -> str:
    """Tracking URI: the configured one, else MLFLOW_TRACKING_URI, else a sqlite file in root.

    Raises ConfigError if the configured URI holds credentials, since configuration is printed, stored and shared.
    """
    try:
        secret = holds_secret(configured)
    except ValueError as error:
        raise ConfigError(where, f"{mask(configured)} is no URI ({error})", "such as http://127.0.0.1:5000") from error
    if secret:
        raise ConfigError(
            where,
            f"{mask(configured)} holds credentials",
            "a URI without them",
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (a database: the whole URI in MLFLOW_TRACKING_URI)",
        )
    uri = configured or os.environ.get("MLFLOW_TRACKING_URI", "") or f"sqlite:///{root / 'mlflow.db'}"
    file = sqlite_file(uri)
    # A relative path would depend on the working directory.
    return f"sqlite:///{root / file}" if file is not None else uri


def holds_secret(uri: str) -> bool:
    """Return True if a URI holds a password or token; a database's user name is not secret."""
    netloc = urlsplit(uri).netloc
    user, at, _ = netloc.rpartition("@")
    if at and (uri.startswith("http") or ":" in user):
        return True
    return _SECRET_FIELD.search(uri) is not None


def sqlite_file(uri: str) -> Path | None:
    """Database file of a sqlite URI; None for any other URI."""
    path = uri.partition(":///")[2].partition("?")[0]
    return Path(path) if uri.startswith("sqlite") and path else None


def mask(text: str, uri: str = "") -> str:
    """Mask credentials in a text: those of its URIs, of `uri`, and of MLflow's variables."""
    secrets = [os.environ.get(name, "") for name in _VARIABLES]
    if uri:
        user, at, _ = urlsplit(uri).netloc.rpartition("@")
        secrets += [user, user.partition(":")[2]] if at else []
    for secret in sorted({*secrets, *map(unquote, secrets)}, key=len, reverse=True):
        if len(secret) > 2:  # shorter ones would match parts of ordinary words; in a URI they are masked below
            text = text.replace(secret, MASK)
    return _SECRET_FIELD.sub(rf"\1{MASK}", _USERINFO.sub(MASK, text))
