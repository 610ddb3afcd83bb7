"""Keys and digests: the same content is the same key, any change is another."""

import os
from pathlib import Path

import pytest

from tasks.shared import keys
from tasks.shared.keys import PROJECT, Digests, code_files, digest_json, library_versions, step_key


def test_key_changes_with_each_part() -> None:
    base = {"identity": {"settings": {"a": 1}}, "code": "c", "inputs": {"model": [["m", "d"]]}}
    keys = {
        step_key(base["identity"], "c", base["inputs"]),  # type: ignore[arg-type]
        step_key({"settings": {"a": 2}}, "c", base["inputs"]),  # type: ignore[arg-type]
        step_key(base["identity"], "other", base["inputs"]),  # type: ignore[arg-type]
        step_key(base["identity"], "c", {"model": [["m", "e"]]}),  # type: ignore[arg-type]
        step_key(base["identity"], "c", {"model": [["n", "d"]]}),  # type: ignore[arg-type]
    }
    assert len(keys) == 5


def test_key_ignores_the_order_of_settings() -> None:
    assert digest_json({"a": 1, "b": [2]}) == digest_json({"b": [2], "a": 1})


def test_tree_digest_sees_content_names_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "a").write_text("one")
    first = Digests(tmp_path / "memory").tree(folder)
    os.utime(folder / "a", (1, 1))
    assert Digests(tmp_path / "memory").tree(folder) == first
    (folder / "a").rename(folder / "b")
    assert Digests(tmp_path / "memory").tree(folder) != first


def old_file(path: Path, text: str = "one") -> Path:
    """A file that is older than the clock's tick, as artifacts are."""
    path.write_text(text)
    os.utime(path, ns=(10**18, 10**18))
    return path


def test_remembered_digest_is_dropped_when_the_file_changes(tmp_path: Path) -> None:
    file = old_file(tmp_path / "file")
    digests = Digests(tmp_path / "memory.json")
    before = digests.file(file)
    digests.save()
    file.write_text("two")
    assert Digests(tmp_path / "memory.json").file(file) != before


def test_an_unchanged_file_is_read_once_also_under_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = old_file(tmp_path / "file")
    digests = Digests(tmp_path / "memory.json")
    before = digests.file(file)
    digests.save()
    os.link(file, tmp_path / "link")
    file.rename(tmp_path / "renamed")
    monkeypatch.setattr(keys, "sha256_file", lambda path: pytest.fail(f"{path} was read again"))
    again = Digests(tmp_path / "memory.json")
    assert again.file(tmp_path / "link") == again.file(tmp_path / "renamed") == before


def test_a_file_changed_within_a_tick_of_the_clock_is_not_remembered(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    digests = Digests(tmp_path / "memory.json")
    before, state = digests.file(file), file.stat()
    file.write_text("two")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert digests.file(file) != before


def test_without_trust_a_change_that_keeps_its_times_is_found(tmp_path: Path) -> None:
    file = old_file(tmp_path / "file")
    digests = Digests(tmp_path / "memory.json")
    before = digests.file(file)
    digests.save()
    old_file(file, "two")
    assert Digests(tmp_path / "memory.json").file(file) == before, "the price of not reading"
    assert Digests(tmp_path / "memory.json", trust=False).file(file) != before


def test_two_that_save_at_once_keep_both_news(tmp_path: Path) -> None:
    first, second = (Digests(tmp_path / "memory.json") for _ in range(2))
    first.file(old_file(tmp_path / "a", "a"))
    second.file(old_file(tmp_path / "b", "b"))
    first.save()
    second.save()
    assert len(Digests(tmp_path / "memory.json").known) == 2


def test_damaged_memory_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "memory.json").write_text("{broken")
    (tmp_path / "file").write_text("x")
    assert Digests(tmp_path / "memory.json").file(tmp_path / "file")


def test_code_files_follow_imports_and_take_the_stages_data() -> None:
    names = {file.relative_to(PROJECT).as_posix() for file in code_files("tasks.report.html")}
    assert {
        "tasks/report/html.py",
        "tasks/report/html.jinja",
        "tasks/report/html.css",
        "tasks/shared/verdict.py",
    } <= names
    assert not any(name.startswith("flows/") for name in names)
    assert "tasks/shared/progress.py" not in names
    assert any(file.suffix == ".yaml" for file in code_files("tasks.curate.support"))


def test_versions_drop_build_tags() -> None:
    found = library_versions(["torch", "no-such-package-here"])
    assert "+" not in found["torch"] and found["no-such-package-here"] == "absent"


def test_code_files_follow_child_processes() -> None:
    names = {file.relative_to(PROJECT).as_posix() for file in code_files("tasks.evaluate.paired")}
    assert {"tasks/evaluate/runtime_probe.py", "tasks/shared/llama_child.py", "tasks/shared/gguf.py"} <= names
