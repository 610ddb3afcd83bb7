"""Task lookup by name, and problems reported at plan time."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.evaluate.benchmark import tasks as harness_tasks
from tasks.evaluate.benchmark.tasks import (
    SelectedTask,
    TaskSources,
    definitions,
    is_fetched,
    local_files,
    network_allowed,
)
from tests.benchmark_data import write_benchmark_data

WHERE = "steps.bench"


def write_task(folder: Path, name: str = "mine", **changes: Any) -> Path:
    """Write a user's task file with its data."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text(
        "".join(json.dumps({"question": f"{n}?", "choices": ["no", "yes"], "gold": n % 2}) + "\n" for n in range(6))
    )
    task: dict[str, Any] = {
        "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}}, "test_split": "test",
        "output_type": "multiple_choice", "doc_to_text": "question", "doc_to_choice": "choices", "doc_to_target": "gold",
    } | changes  # fmt: skip
    (folder / f"{name}.yaml").write_text(json.dumps(task))
    return folder


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the library by three tasks and a group, with empty hub caches."""

    def task(**config: Any) -> SimpleNamespace:
        return SimpleNamespace(cfg=config, kind=SimpleNamespace(name="TASK"), tags=set())

    tasks = {
        "arc": task(dataset_path="hub/arc"),
        "lines": task(dataset_path="text", dataset_kwargs={"data_files": "https://host/lines.txt"}),
    }
    tasks["code"] = task(dataset_path="hub/code", unsafe_code=True)
    tasks["both"] = SimpleNamespace(
        cfg={"group": "both", "task": ["arc", {"task": "code"}]}, kind=SimpleNamespace(name="GROUP"), tags=set()
    )
    monkeypatch.setattr(harness_tasks, "library_tasks", lambda: tasks)
    monkeypatch.setenv("HF_HOME", "/nowhere")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)


def problems(places: TaskSources, *names: str, code: bool = False) -> list[str]:
    return [str(problem) for problem in places.problems(names, code, WHERE)]


@pytest.mark.usefixtures("library")
def test_names_are_found_in_three_places_and_a_misspelled_one_is_helped(tmp_path: Path) -> None:
    data, own = write_benchmark_data(tmp_path / "data"), write_task(tmp_path / "own")
    places = TaskSources(str(data), str(own))
    found = list(places.find(["gsm8k_test", "mine", "arc"], WHERE))
    assert [task.origin for task in found if isinstance(task, SelectedTask)] == ["ours", "folder", "library"]
    (wrong,) = problems(places, "mine", "gsm8k_tset")
    assert "no task 'gsm8k_tset'" in wrong and "did you mean gsm8k_test" in wrong


@pytest.mark.usefixtures("library")
def test_missing_data_is_told_task_by_task_with_where_it_comes_from(tmp_path: Path) -> None:
    (unset,) = problems(TaskSources("", ""), "gsm8k_test", "xcopa_languages")
    assert "steps.bench.data: not set; required for 2 tasks" in unset
    assert "gsm8k_test: gsm8k/test.jsonl, gsm8k/train.jsonl, from github.com/openai/grade-school-math (MIT)" in unset
    assert "and 9 more" in unset and "steps.bench.data=/your/benchmarks" in unset
    data = write_benchmark_data(tmp_path / "data")
    assert problems(TaskSources(str(data), ""), "gsm8k_test") == []
    (data / "gsm8k" / "train.jsonl").unlink()
    (partly,) = problems(TaskSources(str(data), ""), "gsm8k_test", "banking77_of10")
    assert "lacks files of 1 tasks" in partly and "gsm8k/test.jsonl" not in partly


@pytest.mark.usefixtures("library")
def test_a_task_that_needs_the_network_is_refused_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("arc", "lines"):
        (refused,) = problems(TaskSources("", ""), name)
        assert f"{name} needs the network" in refused and "HF_HUB_OFFLINE=0 once" in refused
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (tmp_path / "hub" / "datasets--hub--arc").mkdir(parents=True)
    assert problems(TaskSources("", ""), "arc") == [], "fetched before"
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert network_allowed() and problems(TaskSources("", ""), "lines") == []


@pytest.mark.usefixtures("library")
def test_groups_are_looked_into(tmp_path: Path) -> None:
    network_needed, unsafe = problems(TaskSources("", ""), "both")
    assert "hub/arc, hub/code" in network_needed and "code written by the model" in unsafe
    own = write_task(write_task(tmp_path / "own", "one"), "two")
    (own / "group.yaml").write_text(json.dumps({"group": "ours", "task": ["one", "two"]}))
    tasks = harness_tasks.folder_tasks(own)
    assert [config["task"] for config in definitions("ours", tasks)] == ["one", "two"]


@pytest.mark.usefixtures("library")
def test_a_folder_of_task_files_is_read_without_running_its_code(tmp_path: Path) -> None:
    own = write_task(tmp_path / "own")
    places = TaskSources("", str(own))
    assert problems(places, "mine") == []
    text = (own / "mine.yaml").read_text()
    (own / "mine.yaml").write_text(text.replace('"doc_to_text": "question"', '"doc_to_text": !function mine.ask'))
    (own / "mine.py").write_text("raise SystemExit('it ran')\n")
    (refused,) = problems(places, "mine")
    assert "mine.yaml would run Python code" in refused and "include_code=true" in refused
    assert problems(places, "mine", code=True) == []
    assert "no such folder" in problems(TaskSources("", str(tmp_path / "no")), "mine")[0]
    (tmp_path / "own" / "mine.jsonl").unlink()
    assert "mine reads mine.jsonl" in problems(places, "mine", code=True)[0]


@pytest.mark.usefixtures("library")
def test_one_name_in_two_places_is_refused(tmp_path: Path) -> None:
    data, own = write_benchmark_data(tmp_path / "data"), write_task(tmp_path / "own", "gsm8k_test")
    (twice,) = problems(TaskSources(str(data), str(own)), "gsm8k_test")
    assert "but also built in" in twice


@pytest.mark.usefixtures("library")
def test_only_the_chosen_tasks_files_count_and_their_content_is_known(tmp_path: Path) -> None:
    data, own = (
        write_benchmark_data(tmp_path / "data"),
        write_task(tmp_path / "own", dataset_kwargs={"data_files": str(tmp_path / "far.jsonl")}),
    )
    far = tmp_path / "far.jsonl"
    far.write_text("{}\n")
    places = TaskSources(str(data), str(own))
    assert places.sources(["gsm8k_test", "mine"]) == (
        data / "gsm8k" / "test.jsonl",
        data / "gsm8k" / "train.jsonl",
        own,
        far,
    )
    ours, mine = (task for task in places.find(["gsm8k_test", "mine"], WHERE) if isinstance(task, SelectedTask))
    before = places.content(ours), places.content(mine)
    far.write_text("{ }\n")
    assert places.content(ours) == before[0] != "" and places.content(mine) != before[1]
    assert TaskSources("", "").sources(["gsm8k_test", "arc"]) == ()


def test_what_a_definition_reads() -> None:
    base = Path(__file__).parent
    assert local_files(
        {"dataset_path": "csv", "dataset_kwargs": {"data_files": {"test": ["a.csv", "b.csv"]}}}, base
    ) == [Path("a.csv"), Path("b.csv")]
    assert local_files({"dataset_path": "json", "dataset_kwargs": {"data_files": "hf://x"}}, base) is None
    assert local_files({"dataset_path": base.name}, base.parent) == [Path(base.name)]
    assert local_files({"dataset_path": "Rowan/hellaswag"}, base) is None
    assert not is_fetched("Nobody/has_this")


@pytest.mark.slow
def test_no_task_of_the_real_library_is_called_like_one_of_ours() -> None:
    harness_tasks.library_tasks.cache_clear()
    real = harness_tasks.library_tasks()
    assert len(real) > 10_000 and not set(real) & set(harness_tasks.BENCHMARKS)


@pytest.mark.usefixtures("library")
def test_data_beside_the_folder_is_part_of_what_is_asked(tmp_path: Path) -> None:
    own = write_task(tmp_path / "own", dataset_kwargs={"data_files": {"test": "../elsewhere.jsonl"}})
    data = tmp_path / "elsewhere.jsonl"
    data.write_text((own / "mine.jsonl").read_text())
    places = TaskSources("", str(own))
    assert places.sources(["mine"]) == (own, data.resolve())
    (task,) = (found for found in places.find(["mine"], WHERE) if isinstance(found, SelectedTask))
    before = places.content(task)
    data.write_text(data.read_text().replace("yes", "yea"))
    assert places.content(task) != before


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("included", ["../base.yaml", "sub/../../base.yml"])
def test_what_is_included_from_outside_is_refused(tmp_path: Path, included: str) -> None:
    own = write_task(tmp_path / "own", include=included)
    (wrong,) = (problem for problem in problems(TaskSources("", str(own)), "mine", code=True) if "includes" in problem)
    assert f"mine.yaml includes {included}" in wrong
