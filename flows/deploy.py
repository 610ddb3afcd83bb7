"""Serve recipes to a Prefect server, and execute their runs.

python -m flows.deploy support_bot tiny                 on demand
python -m flows.deploy support_bot --cron "0 3 * * *"   every night at three
python -m flows.deploy tiny --override seed=1 --interval 3600

Start a run from the server's pages, or by a command:
prefect deployment run compress/tiny -p 'overrides=["steps.slim.ratio=0.3"]'

Runs start only while this command runs, and use its environment: set a
teacher's API key here.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence

from flows.console import exit_codes
from flows.console.terminal import prepare_terminal
from flows.orchestration.deployment import build_schedule, check_recipes, check_server, serve, until_interrupted
from flows.orchestration.servers import QUIET, URL
from tasks.shared.errors import ConfigError, StillroomError
from tasks.shared.store.keys import PROJECT

log = logging.getLogger("stillroom")


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.deploy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", nargs="+", help="recipe to serve, as a deployment of its name")
    when = parser.add_mutually_exclusive_group()
    when.add_argument("--cron", help='schedule in UTC, such as "0 3 * * *"')
    when.add_argument("--interval", type=float, metavar="SECONDS", help="time from one start to the next")
    parser.add_argument(
        "--override", action="append", default=[], metavar="A=B", help="change a setting of the runs; may be repeated"
    )
    parser.add_argument(
        "--at-once", type=int, default=1, metavar="N", help="largest number of runs at the same time (1)"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted.  Exit codes: 2 an error, 130 interrupted."""
    prepare_terminal()
    options = read_arguments(arguments)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        folders = check_recipes(options.recipe, options.override)
        os.environ[URL] = check_server()
        schedule = build_schedule(options.cron, options.interval)
        if options.at_once < 1:
            raise ConfigError("--at-once", str(options.at_once), "1 or more")
        until_interrupted(lambda: serve(options.recipe, options.override, schedule, options.at_once), folders)
    except StillroomError as error:
        log.error("%s", error)
        return exit_codes.USER
    return exit_codes.interrupted()


if __name__ == "__main__":
    sys.exit(main())
