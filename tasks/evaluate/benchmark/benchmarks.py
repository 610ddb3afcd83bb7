"""Benchmarks on local files for lm-evaluation-harness: files, item format and prompts.

Items are shuffled once with a fixed seed, so that a limit takes a random subset, the same for every model and run.
The prompts are our own: compare models with each other, not with published figures.
"""

import csv
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tasks.evaluate.benchmark.instructions import CHECKS, follows_all
from tasks.shared.errors import DataError
from tasks.shared.formats.scores import Measure

Doc = dict[str, Any]
Splits = dict[str, list[Doc]]

OPTIONS = 10
"""Labels per item where a data set has 77 or 150: the right one, and others drawn at random."""
ANSWER_TOKENS = 256
LONGEST_ANSWER = 150
"""Longest answer in words that a prompt may demand; longer ones do not fit in ANSWER_TOKENS."""
CONNECTIVES = {
    "et": ("sest", "seetõttu"), "ht": ("paske", "donk"), "id": ("karena", "maka"), "it": ("perché", "quindi"),
    "qu": ("imaraykuchus", "chayrayku"), "sw": ("kwa sababu", "kwa hiyo"), "ta": ("ஏனெனில்", "எனவே"), "th": ("เพราะ", "ดังนั้น"),
    "tr": ("çünkü", "bu yüzden"), "vi": ("bởi vì", "vì vậy"), "zh": ("因为", "所以"),
}  # fmt: skip
"""Connectives by language: "because", "therefore"."""
CHOICE_CONFIG: dict[str, Any] = {"output_type": "multiple_choice", "doc_to_text": "context", "doc_to_choice": "choices", "doc_to_target": "gold"}  # fmt: skip
ACCURACY: list[dict[str, Any]] = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
LENGTH_NORMALIZED: list[dict[str, Any]] = [
    {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    *ACCURACY,
]


@dataclass(frozen=True)
class Benchmark:
    """One built-in benchmark.

    files: relative to the data folder.  origin: source and license.  read: data folder -> items by split ("test"; "train" for few-shot
    examples).  A multiple-choice item has id, context, choices, gold (index) and tags.
    metric: the harness metric behind the measure.  suffix: name of the measure, if not the metric's.
    """

    files: tuple[str, ...]
    origin: str
    read: Callable[[Path], Splits]
    measure: Measure
    config: Mapping[str, Any] = field(default_factory=lambda: CHOICE_CONFIG | {"metric_list": ACCURACY})
    metric: str = "acc"
    suffix: str = ""

    def missing(self, folder: Path) -> list[str]:
        """Return the files that are missing from the folder."""
        return [file for file in self.files if not (folder / file).is_file()]


def _choice(identity: str, context: str, right: str, wrong: Sequence[str], **tags: str) -> Doc:
    """Multiple-choice item with shuffled options, so that a position bias does not help."""
    options = [right, *wrong]
    random.Random(identity).shuffle(options)
    return {"id": identity, "context": context, "choices": options, "gold": options.index(right), "tags": tags}


def _drawn(docs: list[Doc], seed: str = "") -> list[Doc]:
    random.Random(seed).shuffle(docs)
    return docs


def _lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield line number and JSON object of every line.  Raises DataError for invalid JSON."""
    for number, text in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
        try:
            row = json.loads(text)
        except ValueError as error:
            raise DataError(f"{file}: line {number}", str(error), "one JSON object per line") from error
        yield str(number), row


def _table(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        for number, row in enumerate(csv.DictReader(stream), start=1):
            yield str(number), row


def _hellaswag(folder: Path) -> Splits:
    rows = _lines(folder / "hellaswag_val1000" / "hellaswag_val1000.jsonl")
    return {"test": _drawn([
        {"id": str(row["ind"]), "context": row["query"], "choices": [choice.strip() for choice in row["choices"]], "gold": int(row["gold"]), "tags": {}}
        for _, row in rows
    ])}  # fmt: skip


def _gsm8k(folder: Path) -> Splits:
    def split(name: str) -> list[Doc]:
        return [
            {"id": number, "question": row["question"], "answer": row["answer"], "tags": {}}
            for number, row in _lines(folder / "gsm8k" / f"{name}.jsonl")
        ]

    return {"train": split("train"), "test": _drawn(split("test"))}


def _truthfulqa(folder: Path) -> Splits:
    def parts(text: str) -> list[str]:
        return [part.strip() for part in text.split(";") if part.strip()]

    return {"test": _drawn([
        _choice(number, f"Q: {row['Question'].strip()}\nA:", row["Best Answer"].strip(), parts(row["Incorrect Answers"]), kind=row["Type"].lower())
        for number, row in _table(folder / "truthfulqa" / "TruthfulQA.csv")
    ])}  # fmt: skip


def _xcopa(folder: Path) -> Splits:
    """XCOPA items, interleaved by language, so that a limit covers all languages equally.

    Each language has its own order, so that a limit takes few questions twice.  The languages translate the same 500 questions, so
    translations of one question form a cluster.
    """
    found = []
    for language, links in CONNECTIVES.items():
        rows = _lines(folder / "xcopa" / "data" / language / f"test.{language}.jsonl")
        found.append(_drawn([
            {
                "id": f"{language}-{row['idx']}",
                "context": f"{row['premise'].strip().rstrip('.。')} {links[row['question'] == 'effect']}",
                "choices": [row[name][:1].lower() + row[name][1:] for name in ("choice1", "choice2")],
                "gold": int(row["label"]), "tags": {"language": language, "cluster": f"xcopa {row['idx']}"},
            }
            for _, row in rows
        ], language))  # fmt: skip
    return {"test": [doc for of_each in zip_longest(*found) for doc in of_each if doc is not None]}


def _crows_pairs(folder: Path) -> Splits:
    rows = _table(folder / "crows_pairs" / "crows_pairs_anonymized.csv")
    return {"test": _drawn([
        _choice(number, "", row["sent_more"].strip(), [row["sent_less"].strip()], group=row["bias_type"]) for number, row in rows
    ])}  # fmt: skip


def _labeled(identity: str, text: str, label: str, labels: Sequence[str], **tags: str) -> Doc:
    others = random.Random(identity).sample(
        [other for other in labels if other != label], min(OPTIONS, len(labels)) - 1
    )
    right, *wrong = (name.replace("_", " ") for name in (label, *others))
    return _choice(identity, f"Customer: {text.strip()}\nTopic:", right, wrong, **tags)


def _banking77(folder: Path) -> Splits:
    rows = list(_table(folder / "banking77" / "test.csv"))
    labels = sorted({row["category"] for _, row in rows})
    return {"test": _drawn([_labeled(number, row["text"], row["category"], labels) for number, row in rows])}


def _clinc150(folder: Path) -> Splits:
    rows = json.loads((folder / "clinc150" / "data_full.json").read_text("utf-8"))["test"]
    domains = json.loads((folder / "clinc150" / "domains.json").read_text("utf-8"))
    domain_of = {label: domain for domain, labels in domains.items() for label in labels}
    labels = sorted(domain_of)
    return {"test": _drawn([
        _labeled(str(index), text, label, labels, domain=domain_of[label]) for index, (text, label) in enumerate(rows, start=1)
    ])}  # fmt: skip


def _ifeval(folder: Path) -> Splits:
    docs = []
    for _, row in _lines(folder / "ifeval" / "input_data.jsonl"):
        names, given = row["instruction_id_list"], row["kwargs"]
        longest = max((one.get("num_words") or 0 for one in given if one.get("relation") == "at least"), default=0)
        if set(names) <= CHECKS.keys() and longest <= LONGEST_ANSWER:
            kind = names[0].partition(":")[0] if len(names) == 1 else "several"
            docs.append({
                "id": str(row["key"]), "prompt": row["prompt"], "instructions": names, "arguments": json.dumps(given),
                "wanted": ", ".join(names), "tags": {"kind": kind},
            })  # fmt: skip
    return {"test": _drawn(docs)}


def _follows(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    return {"strict": float(follows_all(results[0], doc["instructions"], json.loads(doc["arguments"])))}


GSM8K_CONFIG: dict[str, Any] = {
    "output_type": "generate_until", "training_split": "train", "doc_to_text": "Question: {{question}}\nAnswer:", "doc_to_target": "{{answer}}",
    "num_fewshot": 5,
    "generation_kwargs": {"until": ["Question:", "<|im_end|>", "</s>"], "do_sample": False, "max_gen_toks": ANSWER_TOKENS},
    "metric_list": [{
        "metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": True,
        "regexes_to_ignore": [",", r"\$", "(?s).*#### ", r"\.$"],
    }],
    "filter_list": [{"name": "last-number", "filter": [
        {"function": "regex", "group_select": -1, "regex_pattern": r"(-?[$0-9.,]{2,})|(-?[0-9]+)"}, {"function": "take_first"},
    ]}],
}  # fmt: skip
IFEVAL_CONFIG: dict[str, Any] = {
    "output_type": "generate_until", "doc_to_text": "prompt", "doc_to_target": "wanted", "process_results": _follows,
    "generation_kwargs": {"until": ["<|im_end|>", "</s>"], "do_sample": False, "max_gen_toks": ANSWER_TOKENS},
    "metric_list": [{"metric": "strict", "aggregation": "mean", "higher_is_better": True}],
}  # fmt: skip
XCOPA_FILES = tuple(f"xcopa/data/{language}/test.{language}.jsonl" for language in CONNECTIVES)
BENCHMARKS: Mapping[str, Benchmark] = {
    "hellaswag_val1000": Benchmark(
        ("hellaswag_val1000/hellaswag_val1000.jsonl",),
        "1,000 items of HellaSwag's validation split as github.com/allenai/OLMo has them (MIT)",
        _hellaswag, Measure(title="HellaSwag, likeliest ending per character"),
        CHOICE_CONFIG | {"metric_list": LENGTH_NORMALIZED}, "acc_norm",
    ),
    "gsm8k_test": Benchmark(
        ("gsm8k/test.jsonl", "gsm8k/train.jsonl"), "github.com/openai/grade-school-math (MIT)",
        _gsm8k, Measure(title="GSM8K, last number of the answer"), GSM8K_CONFIG, "exact_match",
    ),
    "truthfulqa_best": Benchmark(
        ("truthfulqa/TruthfulQA.csv",), "github.com/sylinrl/TruthfulQA (Apache-2.0)",
        _truthfulqa, Measure(title="TruthfulQA, the best answer against the incorrect ones"),
    ),
    "xcopa_languages": Benchmark(
        XCOPA_FILES, "github.com/cambridgeltl/xcopa (CC BY 4.0)", _xcopa, Measure(title="XCOPA, cause or effect in 11 languages"),
    ),
    "crows_pairs_en": Benchmark(
        ("crows_pairs/crows_pairs_anonymized.csv",), "github.com/nyu-mll/crows-pairs (CC BY-SA 4.0)",
        _crows_pairs, Measure(title="CrowS-Pairs, the more stereotyping of two sentences is likelier (0.5: no preference)", better="lower"),
        CHOICE_CONFIG | {"target_delimiter": "", "metric_list": [ACCURACY[0] | {"higher_is_better": False}]}, suffix="stereotype",
    ),
    "banking77_of10": Benchmark(
        ("banking77/test.csv",), "github.com/PolyAI-LDN/task-specific-datasets (CC BY 4.0)",
        _banking77, Measure(title=f"Banking77, the intent among {OPTIONS} of 77"),
    ),
    "clinc150_of10": Benchmark(
        ("clinc150/data_full.json", "clinc150/domains.json"), "github.com/clinc/oos-eval (CC BY 3.0)",
        _clinc150, Measure(title=f"CLINC150, the intent among {OPTIONS} of 150"),
    ),
    "ifeval_lite": Benchmark(
        ("ifeval/input_data.jsonl",), "github.com/google-research/google-research, instruction_following_eval (Apache-2.0)",
        _ifeval, Measure(title=f"IFEval, {len(CHECKS)} of 25 kinds of instruction, all of a prompt's followed"), IFEVAL_CONFIG, "strict",
    ),
}  # fmt: skip
"""By task name."""


def task_config(name: str, folder: Path) -> dict[str, Any]:
    """Return a benchmark's harness configuration, with its items in memory.

    Raises DataError for files that are not the benchmark's.
    """
    from datasets import Dataset

    benchmark = BENCHMARKS[name]
    try:
        splits = benchmark.read(folder)
    except (KeyError, TypeError, ValueError, UnicodeDecodeError) as error:
        files = ", ".join(benchmark.files)
        raise DataError(
            f"{name}: {folder}", f"{type(error).__name__}: {error}", f"{files} as {benchmark.origin} has them"
        ) from error
    if not splits["test"]:
        raise DataError(f"{name}: {folder}", "no items", f"{', '.join(benchmark.files)} as {benchmark.origin} has them")

    def load(**_: Any) -> dict[str, Any]:
        return {split: Dataset.from_list(docs) for split, docs in splits.items()}

    return {"task": name, "test_split": "test", "custom_dataset": load, **benchmark.config}


def tag_value(text: str) -> str:
    """Return a tag value: one lower-case line of at most 40 characters."""
    return re.sub(r"\s+", " ", text).strip().lower()[:40]
