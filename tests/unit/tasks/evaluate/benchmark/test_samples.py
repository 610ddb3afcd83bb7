"""Harness samples as items: filters, choices, answers, tags, truncation."""

from types import SimpleNamespace
from typing import Any

from tasks.evaluate.benchmark.samples import count_truncated, log_likelihoods, read_samples

CHOICES = ["a long wrong ending", "ok"]


def sample(**changes: Any) -> dict[str, Any]:
    return {
        "doc_id": 0, "doc": {"language": "Et ", "label": 1, "other": [1]}, "target": 1, "filter": "none", "metrics": ["acc"], "acc": 1.0,
        "arguments": [("Question?", f" {choice}") for choice in CHOICES], "resps": [[(-6.0, False)], [(-3.0, True)]],
        "filtered_resps": [(-6.0, False), (-3.0, True)], "doc_hash": "h",
    } | changes  # fmt: skip


def task(choices: list[str] | None = CHOICES) -> Any:
    return SimpleNamespace(doc_to_choice=lambda doc: choices, config=SimpleNamespace(doc_to_choice=choices))


def test_a_choice_by_sum_and_by_length() -> None:
    (item,) = read_samples(task(), [sample()], ("language", "label", "other", "absent"), part="")
    assert (item.id, item.question, item.wanted, item.values) == ("0", "Question?", "ok", {"acc": 1.0})
    assert item.answers == {"": "ok", "acc_norm": "a long wrong ending"}
    assert item.tags == {"language": "et", "label": "1"}
    assert item.sample["context"] == "Question?" and item.sample["continuations"] == [" a long wrong ending", " ok"]
    assert "arguments" not in item.sample and list(log_likelihoods(item.sample["resps"])) == [-6.0, -3.0]


def test_every_filter_s_value_counts_and_what_is_no_number_does_not() -> None:
    said = {"arguments": [("Sum?", {"max_gen_toks": 8})], "resps": [["It is 4."]], "target": "4"}
    samples = [
        sample(
            **said,
            filter="strict",
            filtered_resps=["[invalid]"],
            metrics=["exact_match", "pair"],
            exact_match=0.0,
            pair=(1, 2),
        ),
        sample(**said, filter="flexible", filtered_resps=["4"], metrics=["exact_match"], exact_match=True),
    ]
    (item,) = read_samples(task(None), samples, (), part="arithmetic_Two")
    assert item.values == {"exact_match": 0.0, "exact_match,flexible": 1.0}
    assert (item.id, item.answers, item.wanted, item.tags) == (
        "arithmetic_Two/0",
        {"": "[invalid]"},
        "4",
        {"task": "arithmetic_two"},
    )


def test_ours_bring_their_own_names_and_tags() -> None:
    doc = {"id": "et-7", "context": "Because", "tags": {"language": "et", "none": None}}
    (item,) = read_samples(task(), [sample(doc=doc)], ("id",), part="")
    assert (item.id, item.question, item.tags) == ("et-7", "Because", {"language": "et"})


def test_a_pair_without_a_prompt_shows_both() -> None:
    (item,) = read_samples(task(), [sample(arguments=[("", choice) for choice in CHOICES])], (), part="")
    assert item.question == "a long wrong ending / ok"


def test_items_longer_than_the_model_are_counted() -> None:
    lm = SimpleNamespace(max_length=12, max_gen_toks=4, tok_encode=list)
    short, long = (
        sample(doc_id=number, arguments=[(text, " ok"), (text, " no")])
        for number, text in enumerate(("short", "much too long"))
    )
    items = list(read_samples(task(), [short, long], (), part=""))
    assert count_truncated(lm, items) == 1
    asked = sample(arguments=[("ten tokens", {"max_gen_toks": 3})], resps=[["x"]], filtered_resps=["x"])
    assert count_truncated(lm, list(read_samples(task(None), [asked], (), part=""))) == 1
