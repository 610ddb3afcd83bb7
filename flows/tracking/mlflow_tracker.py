"""MLflow as the tracker of a flow: an event is written to a file, sent, and then deleted."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from flows.tracking.address import mask, resolve_uri
from flows.tracking.delivery import Delivery, deliver, end_dead_runs
from flows.tracking.errors import NotSent
from flows.tracking.events import step_content
from flows.tracking.interface import StepRecord
from flows.tracking.mlflow_runs import Runs
from flows.tracking.outbox import Event, Header, new_outbox, now

log = logging.getLogger("stillroom")


class MlflowTracker:
    """MLflow in a sqlite file, or at the server that `uri` names.

    The constructor uses neither disk nor network.  After the first event that cannot be sent, all others wait in the
    outbox, so that a server that is down delays a run only once, by seconds.  Raises ConfigError for a URI with credentials.
    """

    def __init__(self, uri: str, root: Path, experiment: str) -> None:
        self._uri = resolve_uri(uri, root)
        self._root = root
        self._runs = Runs(self._uri, root)
        self._outbox = new_outbox(root)
        self._header = Header(self._outbox.run, experiment, self.address, now())
        self._down = False
        self._run_id = ""

    @property
    def run_id(self) -> str:
        """MLflow's id of the flow's run; empty until a server has it."""
        return self._run_id

    @property
    def address(self) -> str:
        """The tracking URI, credentials masked."""
        return mask(self._uri, self._uri)

    @property
    def link(self) -> str:
        """The run's page in a browser; empty if no server with pages has it."""
        if not self._run_id or not self._uri.startswith("http"):
            return ""
        experiment = self._runs.server.experiment(self._header.experiment)
        return f"{self.address.rstrip('/')}/#/experiments/{experiment}/runs/{self._run_id}"

    def start(self, name: str, tags: Mapping[str, str]) -> None:
        """Open the run of the whole flow."""
        self._record("start", {"name": name, "tags": dict(tags)})
        if not self._down:
            with suppress(NotSent, OSError):  # the next run tries again
                for run in end_dead_runs(self._root, self.address, self._runs):
                    log.info("an earlier run's process is gone; MLflow shows it as killed now (%s)", run)

    def step(self, record: StepRecord) -> None:
        """Record a finished step: a child run if it was made, a tag on the flow's run if found."""
        self._record("step", step_content(record))

    def finish(self, status: str) -> None:
        """Close the run: FINISHED, FAILED or KILLED."""
        self._record("finish", {"status": status})
        self._outbox.release()

    def _record(self, kind: str, content: Mapping[str, Any]) -> None:
        event = self._outbox.event(self._header, kind, content)
        try:
            self._outbox.put(event)
        except OSError as error:
            self._send_unsaved(event, error)
            return
        if self._down:
            return
        found = Delivery()
        try:
            self._run_id = deliver(self._outbox, self._runs, found, late=False) or self._run_id
        except (NotSent, OSError) as error:
            found.problems.append(str(error))
        if found.problems:
            self._down = True
            log.warning(
                "MLflow (%s) did not take the record of this run (%s): %s\n  it is kept in %s; when the server is back: python -m flows.track flush",
                self.address,
                event.identity,
                mask(found.problems[0], self._uri),
                self._outbox.folder,
            )

    def _send_unsaved(self, event: Event, error: OSError) -> None:
        """Send an event that cannot be written to the disk; the step's artifact is safe."""
        log.warning("the record of this run cannot be kept in %s: %s", self._outbox.folder, error.strerror or error)
        if not self._down:
            try:
                self._run_id = self._runs.send(event, late=False)
            except NotSent as reason:
                self._down = True
                log.warning("MLflow (%s) does not have it: %s", self.address, reason)
