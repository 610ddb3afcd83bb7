"""Optional packages: which of an extra's are missing, and the error that names the extra."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from tasks.shared.errors import ConfigError


def extra_problem(where: str, extra: str, packages: Sequence[str]) -> ConfigError | None:
    """Return an error that names missing packages and their extra; None if all are installed.

    where: place in the recipe, or the engine that needs them.
    """
    missing = [name for name in packages if not _is_installed(name)]
    if not missing:
        return None
    return ConfigError(
        where,
        f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed",
        f"the optional packages of the extra `{extra}`",
        f".venv/bin/pip install --constraint requirements.lock --editable '.[{extra}]'",
    )


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
