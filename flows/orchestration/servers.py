"""The Prefect server of a command's runs: the user's, or a temporary one."""

import logging
import os
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flows.tracking.address import mask

log = logging.getLogger("stillroom")
URL = "PREFECT_API_URL"
TEMPORARY = "STILLROOM_TEMPORARY_SERVER"
"""Environment variable that is set while PREFECT_API_URL points to our temporary server."""
QUIET = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
BRIEF = {"PREFECT_CLIENT_MAX_RETRIES": "2"}
"""A request to a server that has gone fails after six seconds instead of a minute; steps do not need the server."""
SET = (URL, TEMPORARY, "PREFECT_HOME", "no_proxy", "NO_PROXY", *QUIET, *BRIEF)
"""Environment variables that a command sets, and restores at its end."""


class Servers:
    """The Prefect server of one command, shared by its runs.  Use as a context manager.

    until_end: contexts to close when the command ends: a temporary server, and the presence of its runs.
    """

    def __init__(self) -> None:
        self.until_end = ExitStack()
        self._dead: set[str] = set()

    def __enter__(self) -> "Servers":
        """Remember the environment."""
        self.until_end.enter_context(restored_environment())
        return self

    def __exit__(self, *_: object) -> None:
        """End the temporary server, if there is one, and restore the environment."""
        self.until_end.close()

    def find(self) -> bool:
        """Return True if the user's server answers.

        The URL comes from PREFECT_API_URL, else from Prefect's active profile.  A server that does not answer is reported once
        and then ignored.
        """
        if TEMPORARY in os.environ:
            return False
        url = os.environ.get(URL) or profile_url()
        if not url or url in self._dead:
            return False
        if not server_answers(url):
            log.warning(
                "Prefect's server %s does not answer; this run uses a temporary one and will not be in that UI", url
            )
            self._dead.add(url)
            os.environ.pop(URL, None)
            return False
        os.environ[URL] = url
        return True

    def choose(self, root: Path) -> None:
        """Import Prefect, offline and quiet, and connect it to a server.

        root: folder for the database of a temporary server.
        Raises MachineError if the temporary server does not start.
        """
        from flows.orchestration.temporary_server import temporary_server

        for name, value in (QUIET | BRIEF).items():
            os.environ.setdefault(name, value)
        if self.find() or TEMPORARY in os.environ:
            load_prefect()
            return
        home = Path(os.environ.setdefault("PREFECT_HOME", str(root / ".prefect")))

        def use(url: str) -> None:
            os.environ[URL], os.environ[TEMPORARY] = url, "1"
            load_prefect()

        try:
            self.until_end.enter_context(temporary_server(home, use))
        except BaseException:
            for name in (URL, TEMPORARY):
                os.environ.pop(name, None)
            raise


@contextmanager
def restored_environment() -> Iterator[None]:
    """Restore at the end the environment variables that a command sets."""
    before = {name: os.environ.get(name) for name in SET}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def has_server() -> bool:
    """Return True if the run uses a Prefect server of the user's, whose pages show it."""
    return bool(os.environ.get(URL)) and TEMPORARY not in os.environ


def server_name() -> str:
    """The server's URL, or "temporary": temporary servers share a database under changing URLs."""
    return mask(os.environ[URL]) if has_server() else "temporary"


def profile_url() -> str:
    """PREFECT_API_URL of Prefect's active profile; empty where there is none."""
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    try:
        profiles = tomllib.loads((home / "profiles.toml").read_text("utf-8"))
        active = os.environ.get("PREFECT_PROFILE") or profiles["active"]
        return str(profiles["profiles"][active][URL])
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError):
        return ""


def load_prefect() -> None:
    """Import Prefect with the present environment and keep its log off the console."""
    from prefect import flow, task  # noqa: F401  the first use of a lazy name sets up Prefect's logging
    from prefect.client.orchestration import get_client  # noqa: F401
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()  # an earlier command of this process may have imported it with another server
    for name in ("prefect", "prefect._internal"):
        logger = logging.getLogger(name)
        logger.propagate = False
        logger.handlers = [logging.NullHandler()]
    logging.raiseExceptions = False  # we report a server that has gone, once


def server_answers(url: str) -> bool:
    """Return True if a Prefect API answers at this URL, even if it demands a password."""
    import httpx

    try:
        code = httpx.get(f"{url.rstrip('/')}/health", timeout=5).status_code
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
    return code < 400 or code in {401, 403}
