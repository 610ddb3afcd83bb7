"""Keys and digests: the same content is the same key, any change is another."""

import os
from pathlib import Path

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


def test_remembered_digest_is_dropped_when_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    digests = Digests(tmp_path / "memory.json")
    before = digests.file(file)
    digests.save()
    file.write_text("two")
    assert Digests(tmp_path / "memory.json").file(file) != before


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
