"""One step of a recipe, found or made.

    python -m flows.stage support_bot slim

is the command in dvc.yaml.  A flow runs the same code in a child process, so that a step's memory is freed when it ends and the step
can be killed.  That process is forked from the run's template, which has imported the libraries (`flows/running/fork_template.py`).
Settings come from params.yaml, or from --job, a file that the flow writes.
"""

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from flows.console import exit_codes
from flows.console.terminal import prepare_streams
from flows.running.work import obtain, read_job
from tasks.shared.errors import StillroomError
from tasks.shared.processes import ProcessId, end_with
from tasks.shared.store.artifacts import disk_errors

log = logging.getLogger("stillroom")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    0: made or found.  2: a message for the user.  130: interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="python -m flows.stage", description="Run one step of a recipe, or find that it is done."
    )
    parser.add_argument("recipe")
    parser.add_argument("step")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=ProcessId.parse, default=ProcessId.of(os.getppid()), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    prepare_streams()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in ("stillroom", "tasks"):
        logging.getLogger(name).setLevel(logging.INFO)
    # Where bitsandbytes is installed, peft and the trainer import it, and it advises a package that nothing here needs.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    if options.job is not None:
        end_with(options.parent, whole_group=True)
        # The flow stops us with SIGINT; a flow started by `nohup` or `&` would have us inherit that SIGINT is ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    result: Path | None = None
    try:
        job = read_job(options.recipe, options.job)
        result = job.result
        with disk_errors(job.runtime.folder):
            made = obtain(job.open(options.step), options.step, verbose=result is None)
        if result is not None:
            result.write_text(json.dumps({"made": made}), "utf-8")
    except StillroomError as error:
        return _fail(error, result)
    except KeyboardInterrupt:
        return exit_codes.interrupted()
    return 0


def _fail(error: StillroomError, result: Path | None) -> int:
    """Write the message for the flow that waits, or print it; return the exit code."""
    if result is not None:
        result.write_text(json.dumps({"error": str(error), "retryable": error.retryable}), "utf-8")
    else:
        log.error("%s", error)
    return exit_codes.USER


if __name__ == "__main__":
    sys.exit(main())
