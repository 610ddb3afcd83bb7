"""Atomic writes: the old content or the new, never a part, and nothing left behind."""

import os
from pathlib import Path

import pytest

from tasks.shared.files import PART, replacing, write_bytes, write_text


def test_the_new_content_replaces_the_old_and_no_temporary_file_stays(tmp_path: Path) -> None:
    file = tmp_path / "notes.json"
    file.write_text("old")
    write_text(file, "Größe")
    assert file.read_text("utf-8") == "Größe"
    write_bytes(file, b"\x00\xff", sync=True)
    assert file.read_bytes() == b"\x00\xff" and list(tmp_path.iterdir()) == [file]


def test_a_failed_write_keeps_the_old_content(tmp_path: Path) -> None:
    file = tmp_path / "notes.json"
    file.write_text("old")

    def write() -> None:
        with replacing(file) as temporary:
            assert temporary.parent == tmp_path and temporary.suffix == PART and str(os.getpid()) in temporary.name
            temporary.write_text("half of the n")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write()
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_a_leftover_of_the_same_process_number_does_not_stop_a_link(tmp_path: Path) -> None:
    file, source = tmp_path / "data", tmp_path / "source"
    source.write_text("content")
    with replacing(file) as temporary:
        leftover = temporary
        temporary.write_text("first")
    leftover.write_text("of a killed process")
    with replacing(file) as temporary:
        assert temporary == leftover
        os.link(source, temporary)
    assert file.samefile(source) and not leftover.exists()


@pytest.mark.parametrize("sync", [False, True])
def test_content_is_flushed_before_the_rename_only_where_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool
) -> None:
    file, flushed = tmp_path / "event.json", []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append((os.fstat(descriptor).st_size, file.exists())))
    write_text(file, "whole", sync=sync)
    assert flushed == ([(5, False)] if sync else [])
