"""Delivery from the outbox to the server, by the run itself or later by a flush."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from flows.tracking.address import MASK, resolve_uri
from flows.tracking.errors import Refused, Unreachable
from flows.tracking.mlflow_runs import Runs
from flows.tracking.outbox import Outbox, list_outboxes


@dataclass
class Delivery:
    """Result of a delivery.

    problems: one line each.
    aside: new paths of unreadable files.
    """

    sent: int = 0
    waiting: int = 0
    problems: list[str] = field(default_factory=list)
    aside: list[Path] = field(default_factory=list)


def deliver(outbox: Outbox, runs: Runs, found: Delivery, late: bool) -> str:
    """Send one run's waiting events in order; return its id on the server, empty if unknown.

    late: a flush sends the events, not the run itself.
    Holds the outbox's lock for one event at a time, so several senders can share the work without repeating it.
    A refused event is reported and kept, and the next one is sent.  Raises Unreachable.
    """
    parent, refused = "", set[Path]()
    while outbox.folder.is_dir():
        with outbox.sending() as mine:
            file = next((file for file in outbox.files() if file not in refused), None)
            if not mine or file is None:
                return parent
            event = outbox.read(file)
            if event is None:
                found.aside.append(outbox.set_aside(file))
                continue
            try:
                parent = runs.send(event, late)
            except Refused as error:
                found.problems.append(f"{file}: {error}")
                refused.add(file)
                continue
            outbox.sent(event)
            found.sent += 1
            if event.kind == "finish":
                outbox.close()
                return parent
    return parent


def flush(root: Path, uri: str, progress: Callable[[Outbox], None] | None = None) -> Delivery:
    """Send all waiting events below a root.

    uri: server to send to; empty: the server of each run.
    Unsent events are kept.  Raises ConfigError for a URI with credentials.
    """
    given = resolve_uri(uri, root, "--uri") if uri else ""
    servers: dict[str, Runs] = {}
    down: set[str] = set()
    found = Delivery()
    for outbox in list_outboxes(root):
        if progress is not None:
            progress(outbox)
        address = given or own_address(outbox, root)
        if address not in down:
            try:
                send_all(outbox, servers.setdefault(address, Runs(address, root)), found)
            except Unreachable as error:
                down.add(address)
                found.problems.append(str(error))
        found.waiting += len(outbox.files())
    return found


def send_all(outbox: Outbox, runs: Runs, found: Delivery) -> None:
    """Send the waiting events of one run, and end it if its process died.  Raises Unreachable."""
    deliver(outbox, runs, found, late=True)
    with outbox.sending() as mine:
        if not mine or outbox.alive():
            return
        found.aside += [outbox.set_aside(file) for file in outbox.interrupted()]
        header = outbox.header()
        if header is not None and not outbox.files():
            try:
                runs.abandon(header)
            except Refused as error:
                found.problems.append(f"{outbox.folder}: {error}")
                return
        outbox.close()


def end_dead_runs(root: Path, address: str, runs: Runs) -> list[str]:
    """Mark runs as killed that the server shows as running although their process has ended.

    Considers runs below this root and for this address only.  Their unsent events still wait for a flush; a run whose end is
    unsent was not killed.  Returns the ids of these runs.  Raises NotSent.
    """
    ended = []
    for outbox in list_outboxes(root):
        header = outbox.header()
        if header is None or header.address != address or outbox.alive():
            continue
        with outbox.sending() as mine:
            if not mine or any(file.stem.endswith("-finish") for file in outbox.files()):
                continue
            if runs.abandon(header):
                ended.append(header.run)
            outbox.close()
    return ended


def own_address(outbox: Outbox, root: Path) -> str:
    """Server of a waiting run; a URI with credentials is taken from the environment."""
    header = outbox.header()
    if header is not None and header.address and MASK not in header.address:
        return header.address
    if header is not None and MASK in header.address and not os.environ.get("MLFLOW_TRACKING_URI"):
        return header.address  # no server answers at a masked address; the user sees that error
    return resolve_uri("", root)
