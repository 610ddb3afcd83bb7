"""The table of rules: whole, sourced, reachable; and what it advises in known situations."""

import re
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.advising.model_at_hand import ModelAtHand, find_model
from flows.advising.recipe import merge_steps
from flows.advising.rule_table import RULES
from flows.advising.rules import NOT_MEASURED, Advice, Condition, Fact, Rule, apply, filled, refusals
from flows.advising.situation import ASKED, Situation, find_facts, most_tokens
from flows.planning.catalog import Entry, catalog
from tasks.evaluate.verdict.courses import Rules, items_needed
from tasks.shared.forecast import Dimensions, Size
from tasks.shared.store.keys import PROJECT
from tasks.shared.technique import Compute

TECHNIQUES: dict[str, Entry] = {f"{entry.stage}/{entry.name}": entry for entry in catalog()}
SMOL = ModelAtHand("smol", Size(134_515_008, 98e6, 28_311_552, Dimensions(30, 576, 1536, 9, 576, 192, 49_152)))
ROUND = replace(SMOL, size=Size(1e9, 2e9, 5e7, Dimensions(24, 2048, 8192, 16, 2048, 512, 32_000)))
ODD = replace(SMOL, size=Size(260_000, 5e5, 32_768, Dimensions(5, 64, 172, 8, 64, 32, 512)))
USUAL: dict[str, Any] = {
    "model": SMOL, "hardware": "cpu", "memory": 25e9, "compute": Compute(2, "cpu"), "flops": 2e11, "machine_memory": 25e9, "rows": 480, "items": 600,
    "task": "support",
}  # fmt: skip


class GridModel(ModelAtHand):
    grid = "q4_1"  # type: ignore[assignment]


FROM_A_FILE = GridModel("file", SMOL.size)
SITUATIONS: dict[str, dict[str, Any]] = {
    "everything fits": {},
    "few items": {"items": 60},
    "a file of 61 MB": {"size_limit": 61e6},
    "a file of 52 MB": {"size_limit": 52e6},
    "a file of 15 MB": {"size_limit": 15e6},
    "much faster": {"faster": 2.6},
    "no time": {"hours": 0.0},
    "little time": {"hours": 0.05},
    "no answers": {"answered": False},
    "computed answers": {"task": "reasoning"},
    "a machine too small to train": {"machine_memory": 5e9},
    "from a file in 4 bits": {"model": FROM_A_FILE},
    "a GPU": {"hardware": "gpu"},
    "a GPU with many streams": {"hardware": "gpu", "streams": 32},
    "a GPU with FP8": {"hardware": "fp8-gpu"},
    "a GPU, three times as fast": {"hardware": "gpu", "faster": 3.0},
    "a GPU with FP8 and long chats": {"hardware": "fp8-gpu", "streams": 32},
    "a GPU without room": {"hardware": "gpu", "size_limit": 60e6},
    "room between 4 and 8 bits": {"size_limit": 120e6},
    "rows of 172": {"model": ODD},
    "a family that GPTQ refuses": {"model": replace(SMOL, config={"model_type": "gpt2"})},
    "barely room": {"size_limit": 95e6},
    "somewhat faster": {"faster": 1.4},
    "a cache that fills the memory": {"memory": 1e9, "streams": 32},
}


def advised(**known: Any) -> tuple[Advice, dict[str, Any]]:
    facts = find_facts(Situation(**{**USUAL, **known}), TECHNIQUES)
    return apply(RULES, facts, TECHNIQUES), facts


def names(rules: tuple[Rule, ...]) -> list[str]:
    return [rule.name for rule in rules]


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_every_rule_is_whole() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    for rule in RULES:
        asked = {condition.fact for condition in rule.when} | {
            str(c.value) for c in rule.when if isinstance(c.value, Fact)
        }
        given = {str(value) for step in rule.steps for value in step.settings.values() if isinstance(value, Fact)}
        assert asked | given | placeholders(rule.title) | placeholders(rule.why) <= set(ASKED), rule.name
        assert rule.source and rule.title and rule.why, rule.name
        assert bool(rule.entry) == (rule.measured != NOT_MEASURED), f"{rule.name}: a figure has an entry in the log"
        assert rule.technique or rule.absent or not rule.steps, rule.name


def test_every_figure_has_its_entry_and_every_page_exists() -> None:
    pages = "\n".join(file.read_text("utf-8") for file in sorted((PROJECT / "docs" / "log").glob("*.md")))
    headings = set(re.findall(r"^### (.*)$", pages, re.MULTILINE))
    assert [rule.name for rule in RULES if rule.entry and rule.entry not in headings] == []
    named = {path for rule in RULES for path in re.findall(r"docs/[\w/-]+\.md", rule.source)}
    assert named and [path for path in named if not (PROJECT / path).is_file()] == []


def test_every_number_of_a_measured_figure_is_in_its_entry() -> None:
    """Numbers with a decimal point are copied, not rounded again; three come from another entry."""
    pages = "\n".join(file.read_text("utf-8") for file in sorted((PROJECT / "docs" / "log").glob("*.md")))
    entries = dict(re.findall(r"^### (.*)\n((?:(?!^##).*\n)*)", pages, re.MULTILINE))
    elsewhere = {"8 bits on a CPU": {"1.25", "0.88", "1.75"}}
    missing = {
        (rule.name, number)
        for rule in RULES
        if rule.entry
        for number in re.findall(r"\d+\.\d+", rule.measured)
        if number not in entries[rule.entry] and number not in elsewhere.get(rule.name, set())
    }
    assert missing == set()


def test_every_rule_applies_in_some_situation_and_every_situation_fills_its_text() -> None:
    seen: set[str] = set()
    for known in SITUATIONS.values():
        advice, facts = advised(**known)
        for rule in (*advice.do, *advice.avoid, *advice.absent):
            seen.add(rule.name)
            assert "unknown" not in filled(rule.title + rule.why, facts), rule.name
    lacking = {rule.name for rule in RULES if rule.advice == "avoid" and not rule.exists(TECHNIQUES)}
    assert seen | lacking == {rule.name for rule in RULES}


def test_a_technique_that_the_project_lacks_is_never_advised() -> None:
    advice, facts = advised(size_limit=61e6)
    fewer = {name: entry for name, entry in TECHNIQUES.items() if name not in {"prune/vocabulary", "distill/on_policy"}}
    less = apply(RULES, facts, fewer)
    assert {"vocabulary"} <= set(names(advice.do)) - set(names(less.do)) and "vocabulary" in names(less.absent)
    assert "on-policy" in names(advice.avoid) and "on-policy" not in names((*less.avoid, *less.absent))
    for one in (*advice.do, *advice.avoid):
        assert not one.technique or one.technique in TECHNIQUES
    assert {"cascade", "speculation", "watch"} <= set(names(advice.absent))


def test_a_setting_that_a_technique_lacks_makes_a_rule_absent() -> None:
    rule = Rule("x", "do", (), "t", "w", "s", technique="distill/sft", setting="no_such_setting")
    assert not rule.exists(TECHNIQUES) and replace(rule, setting="epochs").exists(TECHNIQUES)


def test_a_family_that_a_technique_refuses_is_told_so() -> None:
    """llama.cpp ignores Mistral's window, so the export refuses it, and packed layers stay the way."""
    refused = refusals(RULES, {"model_type": "mistral", "sliding_window": 64, "num_hidden_layers": 30}, TECHNIQUES)
    assert set(refused) == {"export/gguf", "export/mixed_gguf"}
    advice = apply(RULES, advised()[1], TECHNIQUES, refused)
    assert {"8 bits on a CPU", "4 bits on a CPU"} <= {rule.name for rule, _ in advice.refused}
    assert not any("export/gguf" in rule.techniques for rule in (*advice.do, *advice.avoid))
    assert refusals(RULES, {"model_type": "llama"}, TECHNIQUES) == {}


@pytest.mark.parametrize(
    ("is_", "value", "expected"),
    [("<", 3, True), (">=", 3, False), ("in", (2, 4), True), ("=", Fact("b"), False), ("<", Fact("c"), None)],
)
def test_conditions(is_: str, value: Any, expected: bool | None) -> None:
    assert Condition("a", is_, value).holds({"a": 2, "b": 3, "c": None}) is expected


@pytest.mark.parametrize(
    ("situation", "candidates", "wanted", "unwanted"),
    [
        ("everything fits", ["q8", "q4"], {"16 bits", "items suffice", "tune"}, {"student", "items"}),
        ("few items", ["q8", "q4"], {"items", "looks"}, {"items suffice"}),
        (
            "a file of 61 MB",
            ["small"],
            {"order", "vocabulary", "student"},
            {"4 bits on a CPU", "smaller model", "width"},
        ),
        ("a file of 52 MB", ["small"], {"student", "width"}, {"smaller model"}),
        ("a file of 15 MB", [], {"order", "smaller model"}, {"student", "smaller on a CPU"}),
        (
            "much faster",
            ["q4", "small"],
            {"timing", "vocabulary", "student", "smaller on a CPU"},
            {"8 bits on a CPU"},
        ),
        ("no time", ["q8", "q4"], {"untrained"}, {"tune", "frozen"}),
        ("little time", ["q8", "q4"], {"tune", "frozen"}, {"untrained"}),
        ("no answers", ["q8", "q4"], {"teacher"}, {"tune", "untrained"}),
        ("a machine too small to train", ["q8", "q4"], {"adapters"}, set()),
        ("somewhat faster", ["q4"], {"4 bits on a CPU", "another engine", "timing"}, {"order", "8 bits on a CPU"}),
        ("a GPU", ["int4"], {"4 bits on a GPU"}, {"W8A8", "FP8", "4 bits on a CPU"}),
        ("a GPU with many streams", ["int8"], {"W8A8"}, {"4 bits on a GPU"}),
        ("a GPU with FP8", ["fp8", "int4"], {"FP8"}, {"W8A8"}),
        ("rows of 172", ["f16"], {"odd widths"}, {"8 bits on a CPU", "4 bits on a CPU"}),
        (
            "barely room",
            ["q4"],
            {"4 bits on a CPU", "quantization-aware training"},
            {"8 bits on a CPU", "order"},
        ),
    ],
)
def test_known_situations(situation: str, candidates: list[str], wanted: set[str], unwanted: set[str]) -> None:
    advice, facts = advised(**SITUATIONS[situation])
    steps, baseline = merge_steps(advice.do, facts, {})
    assert [step.name for step in steps if step.candidate] == candidates
    told = {*names(advice.do), *names(advice.absent)}
    assert wanted <= told and not unwanted & told
    assert baseline == ("tuned" if "tune" in told else "models.base")


def test_avoided_here() -> None:
    assert "blocks of 256" in names(advised()[0].avoid) and "blocks of 256" not in names(advised(model=ROUND)[0].avoid)
    assert "its own grid" in names(advised(model=FROM_A_FILE)[0].avoid) and "its own grid" not in names(
        advised()[0].avoid
    )
    assert "needless reasoning" not in names(advised(task="reasoning")[0].avoid)


def test_a_count_leaves_open_what_only_the_shape_says() -> None:
    advice, facts = advised(model=find_model("1B"), size_limit=400e6)
    assert facts["drop"] is None and facts["outer"] is None
    opened = {rule.name: options for rule, options in advice.open}
    assert opened["student"] == ("MODEL as a folder or file",)
    assert "8 bits on a CPU" not in names(advice.do)
    assert advised(size_limit=15e6)[1]["drop"] == 1.0 and not advised(size_limit=15e6)[0].open, (
        "too much is no lack of knowledge"
    )


def test_the_share_to_drop_is_the_smallest_that_fits() -> None:
    """With the vocabulary trimmed to 24,576 tokens, 22 of 30 layers fit into 61 MB in iq4_nl (4.5 bits), and 24 do not."""
    facts = advised(size_limit=61e6)[1]
    per_layer = (134_515_008 - 28_311_552 - 576) / 30 * 4.5 / 8
    outer = 24576 * 576 * 8.5 / 8 + 36 * 24576
    assert facts["drop"] == 0.25 and round(0.25 * 30) == 8 and round(0.2 * 30) == 6
    assert 22 * per_layer + outer < 61e6 < 24 * per_layer + outer


def test_four_bits_suffice_as_far_as_their_size_and_speed_go() -> None:
    """iq4_nl takes 91.7 MB and decodes at 1.7x; beyond that something has to go."""
    for known, smaller in (
        ({}, False),
        ({"size_limit": 95e6}, False),
        ({"faster": 1.6}, False),
        ({"size_limit": 90e6}, True),
        ({"faster": 2.6}, True),
    ):
        advice, facts = advised(**known)
        steps = {step.name for step in merge_steps(advice.do, facts, {})[0]}
        assert bool({"student", "words"} & steps) is smaller and facts["enough"] is not smaller


def test_epochs_and_items_follow_from_the_forecasts() -> None:
    facts = advised(hours=0.05)[1]
    assert facts["epochs"] == 1 and facts["budget"] == 180.0 and facts["training"] > 180.0
    assert advised()[1]["epochs"] == 3 and advised(hours=0.0)[1]["epochs"] == 0 and advised(rows=0)[1]["epochs"] == 0
    assert advised(hours=0.2)[1]["epochs"] == 3 and advised(hours=0.2, size_limit=61e6)[1]["epochs"] == 2, (
        "a student too"
    )
    assert facts["items_4_bits"] == items_needed(Rules(0.05, 0.06, 0.05), 0.8)
    assert facts["items_cascade"] == 59, "0.95 ** 59 < 0.05"


def test_the_cache_takes_room_from_the_weights() -> None:
    """30 layers x 192 x 2 x 2 bytes a token: 47.2 MB at 2,048 tokens, out of nine tenths of the memory."""
    assert advised(memory=200e6)[1]["room"] == pytest.approx(0.9 * 200e6 - 30 * 192 * 4 * 2048)
    assert advised(memory=200e6, streams=2)[1]["room"] == pytest.approx(0.9 * 200e6 - 2 * 30 * 192 * 4 * 2048)


def test_bandwidth_bounds_the_speed_of_a_stream() -> None:
    """100 GB/s over 92 MB of weights and 47.2 MB of cache: 719 tokens a second; 8 streams read 8 caches for a token of each."""
    cache = 30 * 192 * 4 * 2048
    known = Situation(**{**USUAL, "bandwidth": 100e9})
    assert most_tokens(known, 92e6) == pytest.approx(100e9 / (92e6 + cache))
    assert most_tokens(replace(known, streams=8), 92e6) == pytest.approx(100e9 / (92e6 + 8 * cache))
    assert most_tokens(replace(known, bandwidth=None), 92e6) is None
    mixture = replace(SMOL, config={"num_local_experts": 8})
    assert most_tokens(replace(known, model=mixture), 92e6) is None, "a token reads a few of the experts"


def test_the_table_is_data() -> None:
    """No rule is decided outside the table."""
    source = Path(PROJECT / "flows" / "advising" / "rule_table.py").read_text("utf-8")
    assert not re.search(r"^\s*(if|elif|for|def|while)\b", source, re.MULTILINE)
