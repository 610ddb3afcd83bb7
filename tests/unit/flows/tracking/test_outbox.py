import json
import os
import signal
import time
from pathlib import Path

import pytest

from flows.tracking.outbox import DAMAGED, Header, Outbox, base, list_outboxes, new_outbox
from tests.tracked_steps import in_process

HEADER = Header("f" * 32, "trial", "sqlite:///x", 1_700_000_000_000)


def put(outbox: Outbox, *kinds: str) -> None:
    for kind in kinds:
        outbox.put(outbox.event(HEADER, kind, {"kind": kind}))


def test_events_come_back_in_their_order_and_whole(tmp_path: Path) -> None:
    outbox = new_outbox(tmp_path)
    assert not base(tmp_path).exists(), "making one writes nothing"
    put(outbox, "start", *["step"] * 11, "finish")
    events = [outbox.read(file) for file in outbox.files()]
    assert [event.number for event in events if event] == list(range(13))
    assert events[0] is not None and events[0].header == HEADER and events[0].content == {"kind": "start"}
    assert outbox.header() == HEADER


def test_a_sent_event_is_gone_and_an_empty_outbox_closes(tmp_path: Path) -> None:
    outbox = new_outbox(tmp_path)
    put(outbox, "start")
    event = outbox.read(outbox.files()[0])
    assert event is not None
    outbox.close()
    assert outbox.folder.exists(), "something waits"
    outbox.sent(event)
    outbox.release()
    outbox.close()
    assert not outbox.folder.exists()


def test_what_is_no_event_reads_as_none_and_is_kept_aside(tmp_path: Path) -> None:
    outbox = new_outbox(tmp_path)
    put(outbox, "start")
    good = outbox.files()[0].read_text()
    other = json.dumps(json.loads(good) | {"version": 99})
    for number, text in enumerate(["", good[:40], "[]", "{}", '{"version": 1}', other, good.replace('"run"', '"ran"')]):
        file = outbox.folder / f"{number + 1:04}-step.json"
        file.write_text(text)
        assert outbox.read(file) is None, text
        aside = outbox.set_aside(file)
        assert aside.parent.name == DAMAGED and aside.read_text() == text
    assert [file.name for file in outbox.files()] == ["0000-start.json"]


def test_a_run_counts_as_alive_until_it_ends_or_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from flows.tracking.outbox import *\n"
        "box = new_outbox(Path(sys.argv[1])); box.put(box.event(Header(box.run, 'trial', '', 1), 'start', {}))\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    child = in_process(code, str(tmp_path))
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    (outbox,) = list_outboxes(tmp_path)
    assert outbox.alive()
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    assert not outbox.alive()
    assert len(outbox.files()) == 1, "what was written stays"


def test_an_interrupted_write_is_no_event(tmp_path: Path) -> None:
    outbox = new_outbox(tmp_path)
    put(outbox, "start")
    (outbox.folder / "0001-step.json.part").write_text('{"version": 1, "hea')
    assert [file.name for file in outbox.files()] == ["0000-start.json"]
    assert [file.name for file in outbox.interrupted()] == ["0001-step.json.part"]


def test_the_oldest_run_comes_first(tmp_path: Path) -> None:
    for started in (300, 100, 200):
        outbox = new_outbox(tmp_path)
        outbox.put(outbox.event(Header(outbox.run, "trial", "", started), "start", {}))
    assert [header.started for box in list_outboxes(tmp_path) if (header := box.header())] == [100, 200, 300]


def test_only_one_sends_at_a_time(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from flows.tracking.outbox import *\n"
        "print('asking', flush=True)\n"
        "with Outbox(Path(sys.argv[1])).sending(): print(Path(sys.argv[2]).exists())"
    )
    outbox, mark = new_outbox(tmp_path), tmp_path / "released"
    put(outbox, "start")
    with outbox.sending():
        child = in_process(code, str(outbox.folder), str(mark))
        assert child.stdout is not None and child.stdout.readline() == "asking\n"
        time.sleep(0.3)
        mark.touch()
    assert child.communicate()[0] == "True\n"


def test_an_outbox_may_be_closed_while_another_takes_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock makes its folder, looks whether it is one, and opens a file in it; it may be gone before each."""
    outbox = new_outbox(tmp_path)
    outbox.folder.mkdir(parents=True)
    monkeypatch.setattr(Path, "is_dir", lambda _: False)  # there when it was to be made, gone when it was looked at
    assert not outbox.alive()
    with outbox.sending() as mine:
        assert not mine
