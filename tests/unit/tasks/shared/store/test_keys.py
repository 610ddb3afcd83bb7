"""Keys and digests: the same content is the same key, any change is another."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.planning.config import Runtime
from flows.planning.plan import build_plan, find_technique
from flows.planning.session import Session
from flows.planning.steps import Plan, Step
from tasks.shared.store import keys
from tasks.shared.store.keys import PROJECT, Digests, code_digest, code_files, digest_json, library_versions, step_key
from tests.project_files import technique_options
from tests.tiny_files import bare_folder

TARGETS = sorted(yaml.safe_load(file.read_text("utf-8"))["_target_"] for file in technique_options())


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


def test_a_memory_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file in its place")
    digests = Digests(tmp_path / "folder" / "memory.json")
    assert digests.file(old_file(tmp_path / "file"))
    digests.save()


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
        "tasks/report/page/html.jinja",
        "tasks/report/page/html.css",
        "tasks/shared/formats/verdict.py",
    } <= names
    assert not any(name.startswith("flows/") for name in names)
    assert "tasks/shared/progress.py" not in names
    assert any(file.suffix == ".yaml" for file in code_files("tasks.curate.support"))


def test_versions_drop_build_tags() -> None:
    found = library_versions(["torch", "no-such-package-here"])
    assert "+" not in found["torch"] and found["no-such-package-here"] == "absent"


def test_code_files_follow_child_processes() -> None:
    names = {file.relative_to(PROJECT).as_posix() for file in code_files("tasks.evaluate.runtime")}
    assert {
        "tasks/evaluate/timing/probe.py",
        "tasks/shared/engines/llama_child.py",
        "tasks/shared/gguf/writer.py",
    } <= names


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the code, to edit."""
    shutil.copytree(PROJECT / "tasks", tmp_path / "tasks", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(keys, "PROJECT", tmp_path)
    code_files.cache_clear()
    yield tmp_path
    code_files.cache_clear()


def edit(file: Path) -> bytes:
    """Add a line; returns what was there."""
    before = file.read_bytes()
    file.write_bytes(before + b"\n")
    return before


@pytest.mark.parametrize("target", TARGETS)
def test_an_edit_of_any_file_that_a_step_runs_changes_its_code_and_of_no_other(target: str, copy: Path) -> None:
    module = target.rpartition(".")[0]
    inside, first = code_files(module), code_digest(module)
    assert copy.joinpath(*module.split(".")).with_suffix(".py") in inside
    for file in inside:
        before = edit(file)
        assert code_digest(module) != first, file
        file.write_bytes(before)
    assert code_digest(module) == first
    outside = [file for file in (copy / "tasks").rglob("*") if file.is_file() and file not in inside]
    assert len(outside) > 10
    for file in outside:
        edit(file)
    code_files.cache_clear()
    assert code_digest(module) == first


@pytest.mark.parametrize(
    ("target", "file"),
    [
        ("report.html", "report/page/html.jinja"),
        ("report.html", "report/page/html.css"),
        ("curate.support", "curate/shop/knowledge/returns.yaml"),
        ("traces.openai", "shared/engines/llama_child.py"),
        ("export.gguf", "shared/engines/llama_child.py"),
        ("evaluate.runtime", "evaluate/timing/probe.py"),
    ],
)
def test_templates_knowledge_and_child_processes_are_among_those_files(target: str, file: str) -> None:
    assert PROJECT / "tasks" / file in code_files(f"tasks.{target}")


def test_a_new_import_or_data_file_joins_the_code(copy: Path) -> None:
    digests = [code_digest("tasks.curate.jsonl")]
    (copy / "tasks/shared/extra.py").write_text("VALUE = 1\n", "utf-8")
    assert code_digest("tasks.curate.jsonl") == digests[0]
    rows = copy / "tasks/shared/formats/rows.py"
    rows.write_text(rows.read_text("utf-8") + "\n\ndef late():\n    from tasks.shared import extra\n", "utf-8")
    code_files.cache_clear()
    assert copy / "tasks/shared/extra.py" in code_files("tasks.curate.jsonl")
    digests.append(code_digest("tasks.curate.jsonl"))
    (copy / "tasks/shared/extra.py").write_text("VALUE = 2\n", "utf-8")
    digests.append(code_digest("tasks.curate.jsonl"))
    (copy / "tasks/curate/shop/knowledge/more.yaml").write_text("articles: []\n", "utf-8")
    code_files.cache_clear()
    digests.append(code_digest("tasks.curate.jsonl"))
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("target", TARGETS)
def test_seed_and_every_library_are_in_the_identity(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step("step", target.split(".")[1], target, find_technique("test", target)(), {})
    found = [step.identity(0), step.identity(1)]
    installed = keys.version
    for library in step.technique.spec.libraries:
        monkeypatch.setattr(keys, "version", lambda name, new=library: "99.0" if name == new else installed(name))
        found.append(step.identity(0))
    assert len(step.technique.spec.libraries) > 0
    assert len({digest_json(item) for item in found}) == len(found)


def planned(root: Path, corpora: tuple[str, ...] = ("corpus",), **settings: Any) -> str:
    """The key of a step that reads a model from disk and a finished corpus."""
    for name in corpora:
        out = root / "artifacts" / "trial" / name / "out"
        if not out.exists():
            out.mkdir(parents=True)
            (out / "calibration.jsonl").write_text("{}\n", "utf-8")
    corpus = {"_target_": "tasks.curate.support.Support"}
    step = {"_target_": "tasks.prune.depth.Depth", "inputs": {"model": "models.base", "calibration": corpora[-1]}}
    plan = build_plan(
        {
            "name": "trial",
            "seed": settings.pop("seed", 0),
            "models": {"base": {"path": str(root / "model"), "license": "unknown"}},
            "steps": {**dict.fromkeys(corpora, corpus), "slim": step | settings},
        }
    )
    return key_of(plan, root, "slim")


def key_of(plan: Plan, root: Path, step: str) -> str:
    return Session(plan, Runtime(root=str(root))).key(plan.step(step))


def test_content_and_name_of_every_input_are_in_the_key(tmp_path: Path) -> None:
    bare_folder(tmp_path / "model")
    found = [planned(tmp_path)]
    assert planned(tmp_path) == found[0]
    found += [planned(tmp_path, ratio=0.5), planned(tmp_path, seed=1)]
    found.append(planned(tmp_path, ("corpus", "again")))  # the same content under another name
    (tmp_path / "model" / "config.json").write_text('{"model_type": "mistral"}', "utf-8")
    found.append(planned(tmp_path))
    (tmp_path / "model" / "added.json").write_text("{}", "utf-8")
    found.append(planned(tmp_path))
    (tmp_path / "artifacts/trial/corpus/out/calibration.jsonl").write_text("{} \n", "utf-8")
    found.append(planned(tmp_path))
    assert len(set(found)) == len(found)


def test_the_content_of_the_users_own_files_is_in_the_key(tmp_path: Path) -> None:
    names = ("train", "calibration", "test", "articles")
    paths = {name: tmp_path / f"{name}.jsonl" for name in names}
    for name, path in paths.items():
        path.write_text(f"{name}\n", "utf-8")
    corpus = {"_target_": "tasks.curate.jsonl.Jsonl"} | {name: str(path) for name, path in paths.items()}
    plan = build_plan({"name": "trial", "seed": 0, "models": {}, "steps": {"corpus": corpus}})
    found = [key_of(plan, tmp_path, "corpus")]
    os.utime(paths["train"], (1, 1))
    assert key_of(plan, tmp_path, "corpus") == found[0]
    for path in paths.values():
        path.write_text(path.read_text("utf-8") + "more\n", "utf-8")
        found.append(key_of(plan, tmp_path, "corpus"))
    assert len(set(found)) == len(found)
