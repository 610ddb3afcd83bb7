"""Serve Prefect's pages on this machine, with the API that runs report to.

python -m flows.ui              on port 4200
python -m flows.ui 4300         on another port
"""

import argparse
import logging
import os
import socket
import sys
from collections.abc import Sequence

from flows.console import exit_codes
from flows.console.terminal import prepare_terminal
from flows.orchestration.servers import QUIET, URL
from tasks.shared.errors import ConfigError

log = logging.getLogger("stillroom")
PORT = 4200


def check_port(port: int) -> None:
    """Raise ConfigError if the port is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError("port", f"{port}: {error.strerror}", "a free one", f"make ui PORT={port + 1}") from None


def serve_pages(port: int) -> None:
    """Replace this process by Prefect's own server.

    Prefect's pages call the API at the configured address, so that address is set as well.
    """
    url = f"http://127.0.0.1:{port}/api"
    log.info("Prefect's pages: %s   to see runs there:  export %s=%s", url.removesuffix("/api"), URL, url)
    environment = os.environ | QUIET | {URL: url, "PREFECT_UI_API_URL": url}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    os.execve(sys.executable, command, environment)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.  Exit code 2: a message for the user."""
    prepare_terminal()
    parser = argparse.ArgumentParser(
        prog="python -m flows.ui",
        description="Serve Prefect's pages on this machine, with the API that runs report to.",
    )
    parser.add_argument("port", nargs="?", type=int, default=PORT, help=f"default: {PORT}")
    options = parser.parse_args(arguments)
    try:
        check_port(options.port)
    except ConfigError as error:
        log.error("%s", error)
        return exit_codes.USER
    serve_pages(options.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
