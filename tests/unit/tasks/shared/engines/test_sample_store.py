"""Answers are kept whatever happens, and shared by runs that happen at the same time."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tasks.shared.engines.sample_store import Sample, SampleStore, answer_file, request_digest
from tasks.shared.technique import StepRun

WRITER = """
import sys
from pathlib import Path
from tasks.shared.engines.sample_store import Sample, SampleStore
path, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
with SampleStore(path) as store:
    for number in range(count):
        store.add(Sample(row=name, sample=number, digest=f"{name}-{number}", text="x" * 3000, finish_reason="stop"))
"""


def sample(digest="d", **more):
    return Sample(row="r", sample=0, digest=digest, text="t", finish_reason="stop", **more)


def start_writer(path, name, count):
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), name, str(count)])


def test_an_answer_is_found_by_content_and_belongs_to_who_asks(tmp_path):
    with SampleStore(tmp_path / "a.jsonl") as store:
        store.add(sample())
    with SampleStore(tmp_path / "a.jsonl") as store:
        found = store.find("other", 3, "d")
        assert found is not None and (found.row, found.sample, found.text) == ("other", 3, "t")
        assert store.find("r", 0, "e") is None


def test_two_open_stores_see_what_the_other_adds(tmp_path):
    with SampleStore(tmp_path / "a.jsonl") as one, SampleStore(tmp_path / "a.jsonl") as two:
        one.add(sample("a"))
        assert two.find("r", 0, "a") is not None
        two.add(sample("b"))
        assert one.find("r", 0, "b") is not None and two.added == [sample("b")]


def test_writers_at_the_same_time_lose_and_mix_nothing(tmp_path):
    writers = [start_writer(tmp_path / "a.jsonl", name, 60) for name in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    with SampleStore(tmp_path / "a.jsonl") as store:
        assert all(store.find("r", 0, f"{name}-{number}") for name in "abc" for number in range(60))
    assert len((tmp_path / "a.jsonl").read_bytes().splitlines()) == 180


def test_a_line_waits_for_the_lock_of_another_writer(tmp_path):
    path = tmp_path / "a.jsonl"
    with SampleStore(path) as store, path.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        adding = threading.Thread(target=store.add, args=(sample(),))
        adding.start()
        other.write(b'{"row": ')
        other.flush()
        time.sleep(0.2)
        assert adding.is_alive() and path.read_bytes() == b'{"row": ', "a half line of a living writer is left alone"
        other.write(b"1}\n")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_UN)
        adding.join(10)
        assert len(path.read_bytes().splitlines()) == 2


def test_a_killed_writer_costs_nothing_that_was_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    for _ in range(3):
        writer = start_writer(path, "a", 10**6)
        size = path.stat().st_size if path.exists() else 0
        while not path.exists() or path.stat().st_size < size + 20_000:
            time.sleep(0.005)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait(10)
    with path.open("ab") as stream:
        stream.write(b'{"row": "cut')
    whole = path.read_bytes().count(b"\n")
    with SampleStore(path) as store:
        assert store.find("r", 0, "a-0")
        store.add(sample("new"))
    lines = path.read_bytes().splitlines()
    assert len(lines) == whole + 1 and lines[-1] == sample("new").model_dump_json().encode()


@pytest.mark.parametrize("garbage", [b"\0" * 200_000, b"no json\n\xff\n{}\n", b"x" * 100_000])
def test_garbage_is_skipped_and_what_follows_no_line_break_goes(tmp_path, garbage):
    path = tmp_path / "a.jsonl"
    path.write_bytes(sample("old").model_dump_json().encode() + b"\n" + garbage)
    with SampleStore(path) as store:
        store.add(sample("new"))
    with SampleStore(path) as store:
        assert store.find("r", 0, "old") and store.find("r", 0, "new")


def test_a_digest_holds_all_that_an_answer_depends_on():
    chat, sampling = [{"role": "user", "content": "Hi"}], {"seed": 1}
    digests = {
        request_digest("m", chat, sampling),
        request_digest("n", chat, sampling),
        request_digest("m", [{**chat[0], "content": "Ho"}], sampling),
        request_digest("m", chat, {"seed": 2}),
        request_digest("m", chat, sampling, tools="[1]"),
        request_digest("m", chat, sampling, number=1),
    }
    assert len(digests) == 6


def test_the_file_is_that_of_the_model_whatever_the_version_of_the_code(tmp_path):
    runs = [StepRun("traces", 0, tmp_path, tmp_path / "predictions" / code) for code in ("old", "new")]
    assert answer_file(runs[0], "m") == answer_file(runs[1], "m") != answer_file(runs[0], "n")
    assert answer_file(StepRun("traces", 0, tmp_path / "scratch"), "m").parent == tmp_path / "scratch"
