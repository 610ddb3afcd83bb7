"""Built-in benchmarks on synthetic files: valid items, fixed random order, damaged files."""

import json
from pathlib import Path

import pytest

from tasks.evaluate.benchmark.benchmarks import ANSWER_TOKENS, BENCHMARKS, CONNECTIVES, OPTIONS, task_config
from tasks.shared.errors import DataError
from tests.benchmark_data import COUNT, write_benchmark_data

REAL = Path(__file__).parents[5] / "shared" / "data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmark_data(tmp_path_factory.mktemp("benchmarks"))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_items_are_sound_and_the_order_is_drawn_once(folder: Path, name: str) -> None:
    assert BENCHMARKS[name].missing(folder) == []
    docs, again = (BENCHMARKS[name].read(folder)["test"] for _ in range(2))
    assert docs == again
    assert len({doc["id"] for doc in docs}) == len(docs) > 1
    for doc in docs:
        assert all(value for value in doc["tags"].values())
        if "choices" in doc:
            assert 0 <= doc["gold"] < len(doc["choices"]) == len(set(doc["choices"]))
    if name not in {"xcopa_languages", "ifeval_lite"}:
        assert len(docs) == COUNT and [doc["id"] for doc in docs] != sorted(doc["id"] for doc in docs)


def test_right_answers_stay_right(folder: Path) -> None:
    rows = [
        json.loads(line)
        for line in (folder / "hellaswag_val1000" / "hellaswag_val1000.jsonl").read_text("utf-8").splitlines()
    ]
    endings = {str(row["ind"]): row["choices"][row["gold"]] for row in rows}
    assert {
        doc["id"]: doc["choices"][doc["gold"]] for doc in BENCHMARKS["hellaswag_val1000"].read(folder)["test"]
    } == endings
    banking = BENCHMARKS["banking77_of10"].read(folder)["test"]
    assert all(len(doc["choices"]) == OPTIONS and doc["context"].startswith("Customer: ") for doc in banking)
    assert len({doc["gold"] for doc in banking}) > 3, "the right label stands anywhere"
    assert {doc["choices"][doc["gold"]] for doc in banking} == {f"card topic {n}" for n in range(12)}


def test_slices_stand_in_the_tags(folder: Path) -> None:
    def tags(name: str, key: str) -> list[str]:
        return [doc["tags"][key] for doc in BENCHMARKS[name].read(folder)["test"]]

    assert tags("xcopa_languages", "language")[: len(CONNECTIVES)] == list(CONNECTIVES), "a limit takes as many of each"
    assert all(tags("xcopa_languages", "cluster")), "translations of one question belong together"
    assert set(tags("crows_pairs_en", "group")) == {"gender", "age"}
    assert set(tags("clinc150_of10", "domain")) == {"banking", "travel"}
    assert set(tags("truthfulqa_best", "kind")) == {"adversarial", "non-adversarial"}


def test_prompts_that_cannot_be_checked_or_followed_are_left_out(folder: Path) -> None:
    docs = BENCHMARKS["ifeval_lite"].read(folder)["test"]
    assert {doc["id"] for doc in docs} == {"1", "2"}
    follows = task_config("ifeval_lite", folder)["process_results"]
    first = next(doc for doc in docs if doc["id"] == "1")
    assert [follows(first, [answer])["strict"] for answer in ("all fine", "no, sorry")] == [1.0, 0.0]
    assert task_config("ifeval_lite", folder)["generation_kwargs"]["max_gen_toks"] == ANSWER_TOKENS


@pytest.mark.parametrize("name", BENCHMARKS)
def test_files_that_are_no_such_benchmark_are_refused(tmp_path: Path, name: str) -> None:
    for file in BENCHMARKS[name].files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text('{"other": 1}\n', "utf-8")
    with pytest.raises(DataError, match=name):
        task_config(name, tmp_path)


def test_a_broken_line_is_named(folder: Path, tmp_path: Path) -> None:
    file = write_benchmark_data(tmp_path, 2) / "gsm8k" / "test.jsonl"
    file.write_text(file.read_text("utf-8") + "{half\n", "utf-8")
    with pytest.raises(DataError, match="line 3"):
        task_config("gsm8k_test", tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="the benchmarks' real files are not beside the project")
def test_the_real_files_have_as_many_items_as_their_makers_say() -> None:
    counts = {name: len(benchmark.read(REAL)["test"]) for name, benchmark in BENCHMARKS.items()}
    assert counts == {
        "hellaswag_val1000": 1000, "gsm8k_test": 1319, "truthfulqa_best": 813, "xcopa_languages": 5500, "crows_pairs_en": 1508,
        "banking77_of10": 3080, "clinc150_of10": 4500, "ifeval_lite": 362,
    }  # fmt: skip
