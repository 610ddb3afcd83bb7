"""Serve recipes to a Prefect server: run them from its pages, by a command, or on a schedule.

python -m flows.deploy support_bot tiny                        on demand
python -m flows.deploy support_bot --cron "0 3 * * *"          every night at three
python -m flows.deploy tiny --override seed=1 --interval 3600
prefect deployment run compress/tiny -p 'overrides=["steps.slim.ratio=0.3"]'

The command works as long as it runs; its environment is that of the runs, so a key for a teacher is set here.
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
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.deploy",
        description=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", nargs="+", help="a deployment for each, named after it")
    when = parser.add_mutually_exclusive_group()
    when.add_argument("--cron", help='a schedule like "0 3 * * *", in UTC')
    when.add_argument("--interval", type=float, metavar="SECONDS", help="from one start to the next")
    parser.add_argument(
        "--override", action="append", default=[], metavar="A=B", help="as on the command line of a run"
    )
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="runs beside each other; others wait (1)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted.  Exit codes: 2 a message for the user, 130 interrupted."""
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
