"""The verdict on scores with known truth: ship, do not ship, not enough data."""

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tasks.evaluate.generation import Generation
from tasks.evaluate.grading.groups import once_per_group
from tasks.evaluate.paired import Paired
from tasks.evaluate.verdict.comparison import Rules, compare_measure, weighted_mean
from tasks.evaluate.verdict.decision import choose_shipped, overall_decision
from tasks.evaluate.verdict.pairs import Pairs, pair_items
from tasks.evaluate.verdict.power import minimum_detectable
from tasks.evaluate.verdict.stopping import Rounds
from tasks.shared.errors import ConfigError, DataError, TechniqueError
from tasks.shared.formats.records import Figure
from tasks.shared.formats.scores import Asking, ItemScore, Measure, read_scores, write_scores
from tasks.shared.formats.verdict import Comparison, Gate, Verdict, read_verdict
from tasks.shared.items import Items, worth_of
from tasks.shared.technique import Artifact, Upstream
from tests.score_samples import BITS, FACT, LOOP, flipped, items_of, some_right, verdict_inputs, write_step_scores
from tests.settings_case import Case, Change, whole
from tests.tiny_llama import empty_run

MARGINS = {"fact": 0.05}


def judge(
    folder: Path, scores: Sequence[Artifact], candidates: Sequence[str], margins: Any = None, **settings: Any
) -> Verdict:
    folder.mkdir(exist_ok=True)
    out, run = empty_run(folder)
    ports = settings.pop("ports", {})
    technique = Paired(margins=MARGINS if margins is None else margins, resamples=500, **settings)
    technique(verdict_inputs(folder, candidates, *scores, **ports), out, run)
    return read_verdict(out / "verdict.json")


def judge_facts(folder: Path, values: dict[str, Sequence[float]], tags: Any = None, **settings: Any) -> Verdict:
    folder.mkdir(exist_ok=True)
    summary = write_step_scores(folder / "answers", {"fact": FACT}, items_of("fact", values, tags))
    return judge(folder, [summary], [name for name in values if name != "tuned"], **settings)


def test_an_identical_model_ships_with_nothing_flipped(tmp_path: Path) -> None:
    right = some_right(500, 0.8)
    verdict = judge_facts(tmp_path, {"tuned": right, "same": right})
    found = verdict.comparisons["same"].measures["fact"]
    assert (verdict.decision, verdict.shipped) == ("ship", "same")
    assert (found.to_wrong, found.to_right, found.flip_rate, found.difference, found.p, found.effect) == (
        0,
        0,
        0.0,
        0.0,
        1.0,
        0.0,
    )
    assert found.retention == 1.0 and found.retention_low is not None and 0.98 < found.retention_low < 1.0, (
        "500 items do not show 100 %"
    )
    assert not verdict.flips and not verdict.comparisons["same"].reasons


def test_no_difference_on_forty_items_is_unknown_and_not_safe(tmp_path: Path) -> None:
    right = some_right(40, 0.8)
    verdict = judge_facts(tmp_path, {"tuned": right, "same": right})
    found = verdict.comparisons["same"]
    assert verdict.decision == found.decision == "not enough data"
    assert found.measures["fact"].answer == "unknown" and found.measures["fact"].detectable > 0.05
    assert "too few items" in found.reasons[0]
    assert any("40 items are too few" in note for note in verdict.notes)


def test_a_true_loss_does_not_ship_and_says_why(tmp_path: Path) -> None:
    right = some_right(500, 0.8)
    verdict = judge_facts(tmp_path, {"tuned": right, "worse": flipped(right, 60, 5)})
    found = verdict.comparisons["worse"]
    assert found.decision == "do not ship" and found.measures["fact"].difference == pytest.approx(-55 / 500)
    assert found.reasons[0].startswith("fact: -11.0 points") and "allowed 5.0 points" in found.reasons[0]
    assert len(verdict.flips) == 65
    assert sum(flip.direction == "to_right" for flip in verdict.flips) == 5
    lost = next(flip for flip in verdict.flips if flip.direction == "to_wrong")
    assert (lost.baseline_answer, lost.candidate_answer, lost.wanted) == ("tuned says 1", "worse says 0", "45 days")


def test_shuffled_answers_do_not_ship_though_the_average_is_the_same(tmp_path: Path) -> None:
    right = some_right(500, 0.6)
    shuffled = list(right)
    random.Random(1).shuffle(shuffled)
    verdict = judge_facts(tmp_path, {"tuned": right, "shuffled": shuffled})
    found = verdict.comparisons["shuffled"].measures["fact"]
    assert found.difference == 0.0 and found.flip_rate > 0.4, "averages hide it, flips do not"
    assert verdict.comparisons["shuffled"].decision == "do not ship"
    assert "of the answers changed between right and wrong" in verdict.comparisons["shuffled"].reasons[0]


def test_better_on_average_and_worse_in_one_slice_does_not_ship(tmp_path: Path) -> None:
    right = some_right(600, 0.7)
    tags = [{"kind": "faq", "language": "et" if index < 80 else "en"} for index in range(600)]
    gained = flipped(right[:80], 40, 0) + flipped(right[80:], 0, 100)
    verdict = judge_facts(tmp_path, {"tuned": right, "uneven": gained}, tags)
    found = verdict.comparisons["uneven"]
    assert found.measures["fact"].answer == "yes" and found.measures["fact"].difference > 0.09
    assert found.decision == "do not ship"
    assert [(item.dimension, item.value) for item in found.slices if item.harmed] == [("language", "et")]
    assert "language is et" in found.reasons[0]
    assert verdict.models["uneven"].slices["language"]["et"]["fact"].n == 80


def test_many_equal_slices_harm_nobody(tmp_path: Path) -> None:
    """Without a correction, one of 40 slices would show a loss by chance in every run."""
    right = some_right(4000, 0.7)
    tags = [{"kind": f"kind{index % 40}"} for index in range(4000)]
    draw = random.Random(3)
    noisy = [1.0 - value if draw.random() < 0.06 else value for value in right]
    balanced = flipped(noisy, max(0, int(sum(noisy) - sum(right))), max(0, int(sum(right) - sum(noisy))))
    found = judge_facts(tmp_path, {"tuned": right, "noisy": balanced}, tags).comparisons["noisy"]
    assert len(found.slices) == 40 and not any(item.harmed for item in found.slices)
    assert min(item.p for item in found.slices) < min(item.p_holm for item in found.slices)


def test_a_looping_model_does_not_ship(tmp_path: Path) -> None:
    right, quiet = some_right(300, 0.8), [0.0] * 300
    looping = [1.0] * 60 + [0.0] * 240
    items = items_of("fact", {"tuned": right, "looper": right}) + items_of("loop", {"tuned": quiet, "looper": looping})
    summary = write_step_scores(tmp_path / "answers", {"fact": FACT, "loop": LOOP}, items)
    verdict = judge(tmp_path, [summary], ["looper"], {"fact": 0.05, "loop": 0.02})
    found = verdict.comparisons["looper"].measures
    assert found["fact"].answer == "yes" and found["loop"].answer == "no"
    assert found["loop"].difference == pytest.approx(-0.2), "in favor of the candidate: more loops are worse"
    assert (found["loop"].baseline, found["loop"].candidate, found["loop"].retention) == (0.0, 0.2, None)
    assert verdict.decision == "do not ship"


def test_a_majority_class_model_does_not_ship(tmp_path: Path) -> None:
    """It always answers with the most frequent intent: 40 % right."""
    intents = ["returns"] * 160 + ["postage"] * 120 + ["warranty"] * 80 + ["other"] * 40
    right = some_right(400, 0.85)
    majority = [float(intent == "returns") for intent in intents]
    tags = [{"intent": intent} for intent in intents]
    verdict = judge_facts(tmp_path, {"tuned": right, "majority": majority}, tags, slices={"by": ("intent",)})
    found = verdict.comparisons["majority"]
    assert found.decision == "do not ship"
    assert {item.value for item in found.slices if item.harmed} == {"postage", "warranty", "other"}


def test_amounts_weigh_items_and_a_relative_margin_follows_the_baseline(tmp_path: Path) -> None:
    draw = random.Random(0)
    bits = [draw.uniform(0.8, 1.2) for _ in range(200)]
    weights = [draw.choice([10.0, 1000.0]) for _ in bits]
    items = items_of(
        "bits_per_byte",
        {"tuned": bits, "close": [value * 1.02 for value in bits], "far": [value * 1.3 for value in bits]},
        weights=weights,
    )
    summary = write_step_scores(tmp_path / "likelihood", {"bits_per_byte": BITS}, items)
    verdict = judge(tmp_path, [summary], ["close", "far"], {}, relative_margins={"bits_per_byte": 0.05})
    close, far = (verdict.comparisons[name].measures["bits_per_byte"] for name in ("close", "far"))
    mean = weighted_mean(bits, weights)
    assert close.baseline == pytest.approx(mean) and close.margin == pytest.approx(0.05 * mean)
    assert close.difference == pytest.approx(-0.02 * mean) and close.answer == "yes" and close.p < 0.01
    assert far.answer == "no" and verdict.comparisons["far"].decision == "do not ship"
    assert "bits per byte" in verdict.comparisons["far"].reasons[0]
    assert verdict.shipped == "close"


def test_a_candidate_that_failed_is_not_enough_data_and_the_others_are_judged(tmp_path: Path) -> None:
    right = some_right(500, 0.8)
    summary = write_step_scores(
        tmp_path / "answers",
        {"fact": FACT},
        items_of("fact", {"tuned": right, "same": right}),
        huge={"failure": "out of memory"},
    )
    verdict = judge(tmp_path, [summary], ["huge", "same"])
    assert (verdict.decision, verdict.shipped) == ("ship", "same")
    assert verdict.comparisons["huge"].decision == "not enough data"
    assert verdict.comparisons["huge"].reasons == ["fact: not measured (out of memory)"]
    assert verdict.models["huge"].failures == {"answers": "out of memory"}


def test_noise_is_how_far_the_baseline_lies_from_itself(tmp_path: Path) -> None:
    right = some_right(500, 0.8)
    summary = write_step_scores(
        tmp_path / "answers", {"fact": FACT}, items_of("fact", {"tuned": right, "same": right, "tuned again": flipped(right, 4, 6)}),
        **{"tuned again": {"role": "repeat"}},
    )  # fmt: skip
    verdict = judge(tmp_path, [summary], ["same"])
    floor = verdict.noise["fact"][0]
    assert (floor.model, floor.flip_rate, floor.difference) == ("tuned again", 10 / 500, pytest.approx(2 / 500))
    assert list(verdict.models) == ["tuned", "same"], "asked again, it is the same model"


def test_costs_stand_beside_the_quality_that_they_buy(tmp_path: Path) -> None:
    right = some_right(500, 0.8)
    models = {
        "tuned": {"figures": {"end_to_end_s": Figure(value=2.0)}},
        "a": {"figures": {"end_to_end_s": Figure(value=1.0)}},
    }
    summary = write_step_scores(
        tmp_path / "answers", {"fact": FACT}, items_of("fact", {"tuned": right, "a": flipped(right, 20, 0)}), **models
    )
    verdict = judge(tmp_path, [summary], ["a"], prices={"machine_per_hour": 3.6})
    figures = verdict.models["a"].figures
    assert figures["cost_per_1000"].value == pytest.approx(1.0) and verdict.models["tuned"].figures[
        "cost_per_1000"
    ].value == pytest.approx(2.0)
    assert figures["cost_per_point"].value == pytest.approx(1 / 76) and figures[
        "price_of_point"
    ].value == pytest.approx(1 / 4)
    assert "cost_per_1000" not in judge(tmp_path / "free", [summary], ["a"]).models["a"].figures


def test_watched_measures_decide_nothing(tmp_path: Path) -> None:
    right, quiet = some_right(500, 0.8), [0.0] * 500
    items = items_of("fact", {"tuned": right, "a": right}) + items_of("loop", {"tuned": quiet, "a": [1.0] * 500})
    verdict = judge(tmp_path, [write_step_scores(tmp_path / "answers", {"fact": FACT, "loop": LOOP}, items)], ["a"])
    assert verdict.decision == "ship" and verdict.comparisons["a"].measures["loop"].margin is None
    assert {flip.measure for flip in verdict.flips} == set()


def test_steps_are_put_together_and_must_fit(tmp_path: Path) -> None:
    right = some_right(500, 0.8)
    facts = write_step_scores(tmp_path / "answers", {"fact": FACT}, items_of("fact", {"tuned": right, "a": right}))
    loops = write_step_scores(
        tmp_path / "loops", {"loop": LOOP}, items_of("loop", {"tuned": [0.0] * 500, "a": [0.0] * 500})
    )
    verdict = judge(tmp_path / "1", [facts, loops], ["a"], {"fact": 0.05, "loop": 0.05})
    assert {name: gate.step for name, gate in verdict.gates.items()} == {"fact": "answers", "loop": "loops"}
    again = write_step_scores(tmp_path / "again", {"fact": FACT}, items_of("fact", {"tuned": right, "a": right}))
    with pytest.raises(DataError, match="'fact', which step answers also has"):
        judge(tmp_path / "2", [facts, again], ["a"])
    other = write_step_scores(
        tmp_path / "other", {"loop": LOOP}, items_of("loop", {"raw": [0.0] * 9, "a": [0.0] * 9}), baseline="raw"
    )
    with pytest.raises(DataError, match="one baseline"):
        judge(tmp_path / "3", [facts, other], ["a"])


def test_speed_keeps_its_own_engine_and_machine(tmp_path: Path) -> None:
    right = some_right(50, 0.8)
    facts = write_step_scores(tmp_path / "answers", {"fact": FACT}, items_of("fact", {"tuned": right, "a": right}))
    timed = {"figures": {"tokens_per_second": Figure(value=5.0)}, "engine": "llama.cpp (f16 GGUF)"}
    speed = write_step_scores(tmp_path / "speed", {}, [], accelerator="Example GPU", tuned=timed, a={"failure": "no"})
    verdict = judge(tmp_path / "1", [facts, speed], ["a"])
    assert (verdict.models["tuned"].engine, verdict.models["tuned"].speed_engine) == ("transformers", timed["engine"])
    assert verdict.models["a"].speed_engine == ""
    assert verdict.machine.accelerator == "Example GPU" and verdict.machine.cpu == "Example CPU"
    assert any("did not run on the same machine: answers on Example CPU" in note for note in verdict.notes)
    alone = judge(tmp_path / "2", [facts], ["a"])
    assert alone.machine.accelerator == "" and not any("same machine" in note for note in alone.notes)
    again = write_step_scores(tmp_path / "speed2", {}, [], tuned=timed, a={})
    with pytest.raises(DataError, match="'tokens_per_second' of tuned, which step speed also has"):
        judge(tmp_path / "3", [facts, speed, again], ["a"])


def test_a_margin_of_what_nobody_measured_is_refused(tmp_path: Path) -> None:
    right = some_right(50, 0.8)
    with pytest.raises(ConfigError, match="no step measured facts"):
        judge_facts(tmp_path, {"tuned": right, "a": right}, margins={"facts": 0.05})


def test_a_measure_without_items_cannot_be_decided(tmp_path: Path) -> None:
    right = some_right(500, 0.8)
    summary = write_step_scores(
        tmp_path / "answers", {"fact": FACT, "loop": LOOP}, items_of("fact", {"tuned": right, "a": right})
    )
    verdict = judge(tmp_path, [summary], ["a"], {"fact": 0.05, "loop": 0.05})
    assert verdict.decision == "not enough data" and "loop: no items, so no decision is possible." in verdict.notes


def test_items_answered_by_one_model_only_are_refused() -> None:
    items = [
        ItemScore(measure="fact", id="1", values={"tuned": 1.0}),
        ItemScore(measure="fact", id="2", values={"tuned": 1.0, "a": 1.0}),
    ]
    with pytest.raises(TechniqueError, match="1 items answered by one model only"):
        pair_items(FACT, items, "tuned", "a")


def test_problems_known_from_the_recipe_alone() -> None:
    measuring = Paired  # any technique with the ports of models
    upstream = {"answers": Upstream(measuring(margins=MARGINS), {"baseline": ("tuned",), "candidates": ("a",)})}
    inputs = {"baseline": ("tuned",), "candidates": ("a", "b"), "scores": ("answers",)}

    def problems(technique: Paired, inputs: Any = inputs) -> list[str]:
        return [str(problem) for problem in technique.plan_problems("steps.verdict", inputs, upstream)]

    assert len(problems(Paired(margins=MARGINS))) == 1 and "b not measured" in problems(Paired(margins=MARGINS))[0]
    assert any("nothing would decide" in line for line in problems(Paired()))
    assert any(
        "also in relative_margins" in line for line in problems(Paired(margins=MARGINS, relative_margins=MARGINS))
    )
    assert any(
        "candidates: none" in line
        for line in problems(Paired(margins=MARGINS), {"baseline": ("tuned",), "scores": ("answers",)})
    )
    explaining = problems(Paired(margins=MARGINS, explains=("a", "floats")))
    assert any("floats, not in inputs.candidates" in line and "among a, b" in line for line in explaining)
    assert any("nothing could ship" in line for line in problems(Paired(margins=MARGINS, explains=("a", "b"))))


def test_wordings_of_a_question_are_planned_as_less_than_single_items(tmp_path: Path) -> None:
    grouped = Items(600, groups=worth_of(f"question {place % 100}" for place in range(600)))
    assert str(grouped) == "600, worth 100" and grouped.independent == 100
    found = Paired(margins={"label": 0.05}).find_shortages("steps.verdict", {}, {"label": grouped}, True)
    alone = Paired(margins={"label": 0.05}).find_shortages("steps.verdict", {}, {"label": Items(100)}, True)
    assert found.decidable[0].smallest == alone.decidable[0].smallest
    assert "label: 600 test items in 100 groups, which count once each, are too few" in found.warnings[0]
    assert "groups of test items" in found.warnings[0] and "test items are too few" in alone.warnings[0]
    right = some_right(300, 0.8)
    items = [
        item.model_copy(update={"cluster": f"question {place % 30}"})
        for place, item in enumerate(items_of("label", {"tuned": right, "slim": right}))
    ]
    scores = write_step_scores(tmp_path / "answers", {"label": Measure(title="label accuracy")}, items)
    verdict = judge(tmp_path / "judged", [scores], ["slim"], {"label": 0.05})
    assert any("label: 300 items in 30 groups, which count once each, are too few" in note for note in verdict.notes)


def test_items_in_groups_of_one_are_worth_themselves() -> None:
    assert worth_of(["a", "b", "", ""]) is None
    assert worth_of(["a", "a", "a", "b"]) == 2
    assert worth_of(["a", "a", "", ""]) == 3


def test_the_earlier_name_of_a_measure_is_read(tmp_path: Path) -> None:
    found = Paired(margins={"intent": 0.05}).find_shortages("steps.verdict", {}, {"label": Items(500)}, True)
    assert not found.errors and found.notes[-1] == "steps.verdict: margin of intent: the measure is now called label."
    right = some_right(300, 0.8)
    label = {"label": Measure(title="label accuracy")}
    scores = write_step_scores(tmp_path / "answers", label, items_of("label", {"tuned": right, "slim": right}))
    verdict = judge(tmp_path / "judged", [scores], ["slim"], {"intent": 0.05})
    assert verdict.margin == {"label": 0.05} and verdict.decision == "ship"
    assert "margin of intent: the measure is now called label." in verdict.notes
    with pytest.raises(ValidationError, match="intent is the earlier name of label"):
        Paired(margins={"intent": 0.05, "label": 0.1})


def test_sharing_alpha_needs_more_items() -> None:
    inputs, items = {"candidates": tuple("abcdefgh")}, {"fact": Items(190)}
    alone, shared = (
        Paired(margins={"fact": 0.05}, familywise=shares).find_shortages("steps.verdict", inputs, items, True)
        for shares in (False, True)
    )
    assert not alone.warnings and "190 test items are too few" in shared.warnings[0]


def test_smallest_of_those_that_ship_and_the_decision_of_all() -> None:
    ship, lost, unknown = (
        Comparison(decision=decision, measures={}) for decision in ("ship", "do not ship", "not enough data")
    )
    sizes = {"big": 9, "small": 3, "tiny": 1}
    assert choose_shipped({"big": ship, "small": ship, "tiny": lost}, sizes) == "small"
    assert choose_shipped({"tiny": lost}, sizes) is None
    assert overall_decision({"a": ship, "b": unknown}) == "ship"
    assert overall_decision({"a": lost, "b": unknown}) == "not enough data"
    assert overall_decision({"a": lost}) == "do not ship"


def test_scores_are_checked_when_written_and_when_read(tmp_path: Path) -> None:
    right = some_right(5, 0.8)
    with pytest.raises(DataError, match="0 or 1"):
        write_step_scores(tmp_path / "a", {"fact": FACT}, items_of("fact", {"tuned": [0.5]}))
    with pytest.raises(DataError, match="duplicate item"):
        write_step_scores(tmp_path / "b", {"fact": FACT}, items_of("fact", {"tuned": right}) * 2)
    with pytest.raises(DataError, match="no measure 'loop'"):
        write_step_scores(tmp_path / "c", {"fact": FACT}, items_of("loop", {"tuned": right}))
    summary = write_step_scores(tmp_path / "d", {"fact": FACT}, items_of("fact", {"tuned": right}))
    (summary.path / "items.jsonl").write_text('{"measure": "fact", "id": "x", "values": {"tuned": NaN}}\n')
    with pytest.raises(DataError, match="line 1"):
        read_scores(summary.path)
    (summary.path / "scores.json").write_text("{}")
    with pytest.raises(DataError, match="Field required"):
        read_scores(summary.path)


def test_an_adaptive_verdict_decides_once_its_evidence_suffices_and_stays(tmp_path: Path) -> None:
    right = some_right(200, 0.8)
    late = [*right[:160], *(0.0 for _ in right[160:])]
    judged = judge_facts(tmp_path / "1", {"tuned": right, "same": right, "late": late}, mode="adaptive")
    same, later = (judged.comparisons[name].measures["fact"] for name in ("same", "late"))
    assert judged.mode == "adaptive" and (same.answer, later.answer) == ("yes", "yes")
    assert same.wealth is not None and same.wealth.decided_at == 83 and same.wealth.now == same.wealth.most > 20
    assert later.wealth is not None and later.wealth.now < 1 < 20 <= later.wealth.most, (
        "shown after 83 items, lost since"
    )
    assert later.low == -0.05 and later.difference < -0.1
    assert judge_facts(tmp_path / "2", {"tuned": right, "late": late}).comparisons["late"].decision == "do not ship"


def test_an_adaptive_verdict_says_how_much_evidence_is_missing(tmp_path: Path) -> None:
    right = some_right(80, 0.8)
    found = judge_facts(tmp_path, {"tuned": right, "same": right, "bad": flipped(right, 20, 0)}, mode="adaptive")
    assert "too few items to tell (evidence 1" in found.comparisons["same"].reasons[0]
    assert "of 20 after 80 items" in found.comparisons["same"].reasons[0]
    bad = found.comparisons["bad"]
    assert bad.decision == "do not ship" and bad.measures["fact"].high < 0 and bad.measures["fact"].p < 0.05
    assert any("80 items are too few" in note for note in found.notes)
    assert any("any number of looks" in note for note in found.notes)


def test_a_large_group_does_not_keep_others_from_deciding(tmp_path: Path) -> None:
    """One customer with 40 of 240 rows: as one unit of weight 40 it would set the scale of all bets."""
    right = some_right(240, 0.8)
    alone = items_of("fact", {"tuned": right, "same": flipped(right, 2, 2)})
    grouped = [item.model_copy(update={"cluster": "large" if place < 40 else ""}) for place, item in enumerate(alone)]
    weights = once_per_group({item.id: item.cluster for item in grouped})
    once = [item.model_copy(update={"weight": weights[item.id]}) for item in grouped]
    decisions = [
        judge(
            tmp_path / name,
            [write_step_scores(tmp_path / name / "answers", {"fact": FACT}, items)],
            ["same"],
            {"fact": 0.05},
            mode="adaptive",
        ).decision
        for name, items in (("by item", grouped), ("once", once))
    ]
    assert decisions == ["not enough data", "ship"]


def test_adaptive_amounts_groups_and_relative_margins(tmp_path: Path) -> None:
    near, draw = Measure(title="ROUGE-L", binary=False), random.Random(0)
    before = [draw.uniform(0.2, 0.8) for _ in range(400)]
    after = [value + draw.uniform(-0.1, 0.1) for value in before]
    together = [
        item.model_copy(update={"cluster": str(index // 4)})
        for index, item in enumerate(items_of("fact", {"tuned": [1.0] * 400, "a": [1.0] * 400}))
    ]
    measures = {"rouge_l": near, "fact": FACT, "bits": BITS}
    items = items_of("rouge_l", {"tuned": before, "a": after}) + together
    items += items_of("bits", {"tuned": before, "a": before})
    scores = write_step_scores(tmp_path / "answers", measures, items)
    margins = {"rouge_l": 0.05, "fact": 0.05, "bits": 0.5}
    verdict = judge(tmp_path / "1", [scores], ["a"], margins, mode="adaptive")
    found = verdict.comparisons["a"].measures
    amount, grouped, bits = (found[name].wealth for name in margins)
    assert amount is not None and amount.units == 400 and found["rouge_l"].answer == "yes"
    assert grouped is not None and grouped.units == 100 and found["fact"].n == 400
    assert bits is None and any(note.startswith("bits: the range of its values is not known") for note in verdict.notes)
    relative = judge(tmp_path / "2", [scores], ["a"], {}, mode="adaptive", relative_margins={"rouge_l": 0.3})
    assert relative.decision == "ship"


def test_several_candidates_need_more_evidence_together(tmp_path: Path) -> None:
    right = some_right(96, 0.8)
    models = {"tuned": right, "a": right, **{name: flipped(right, 30, 0) for name in "bcdef"}}
    alone = judge_facts(tmp_path / "1", models, mode="adaptive")
    together = judge_facts(tmp_path / "2", models, mode="adaptive", familywise="fdr")
    assert (alone.decision, together.decision) == ("ship", "not enough data")
    assert "too little among 6 candidates" in together.comparisons["a"].reasons[0]
    problems = Paired(margins=MARGINS, familywise="fdr").plan_problems("steps.verdict", {"candidates": ("a",)}, {})
    assert "steps.verdict.mode=adaptive" in str(next(iter(problems)))


def test_a_model_that_stopped_early_is_compared_on_the_items_it_was_asked(tmp_path: Path) -> None:
    right = some_right(200, 0.8)
    models = {"tuned": right, "bad": flipped(right, 20, 0), "good": right}
    stopped = [
        item if index < 48 else item.model_copy(update={"values": {k: v for k, v in item.values.items() if k != "bad"}})
        for index, item in enumerate(items_of("fact", models))
    ]
    scores = write_step_scores(tmp_path / "answers", {"fact": FACT}, stopped)
    verdict = judge(tmp_path / "1", [scores], ["bad", "good"], mode="adaptive")
    bad, good = (verdict.comparisons[name].measures["fact"] for name in ("bad", "good"))
    assert (bad.n, bad.answer, good.n, good.answer) == (48, "no", 200, "yes")
    with pytest.raises(TechniqueError, match="152 items answered by one model only"):
        judge(tmp_path / "2", [scores], ["bad", "good"])
    gap = [item for index, item in enumerate(stopped) if index != 3]
    gap.insert(3, stopped[60].model_copy(update={"id": "other"}))
    holes = write_step_scores(tmp_path / "holes", {"fact": FACT}, gap)
    with pytest.raises(TechniqueError, match="1 items answered by one model only"):
        judge(tmp_path / "3", [holes], ["bad"], mode="adaptive")
    asked = read_scores(scores.path).summary.model_copy(
        update={"asking": Asking(rows={}, counts={}, available=0, largest={})}
    )
    write_scores(scores.path, asked, items_of("fact", models))
    with pytest.raises(ConfigError, match="stopped asking when its evidence sufficed"):
        judge(tmp_path / "4", [scores], ["bad"])


def test_rounds_must_be_those_of_the_verdict() -> None:
    inputs = {"baseline": ("tuned",), "candidates": ("a",), "scores": ("answers",)}

    def problems(verdict: dict[str, Any], **rounds: Any) -> list[str]:
        asking = Generation(rounds=Rounds(**{"margins": {"fact": 0.05}, **rounds}))
        upstream = {"answers": Upstream(asking, {"baseline": ("tuned",), "candidates": ("a",)})}
        technique = Paired(**{"margins": {"fact": 0.05, "bits": 0.1}, "mode": "adaptive"} | verdict)
        return [str(problem) for problem in technique.plan_problems("steps.verdict", inputs, upstream)]

    assert problems({}) == []
    assert "steps.verdict.mode" in problems({"mode": "fixed"})[0]
    balanced = {"label_balanced": 0.05}
    assert problems({"margins": balanced}, margins=balanced) == []
    assert "label_balanced decides" in problems({"margins": balanced}, margins=balanced, after="earlier")[0]
    found = problems({"margins": {"fact": 0.1}, "alpha": 0.1})
    assert len(found) == 2 and 'steps.answers.rounds.margins: "${steps.verdict.margins}"' in found[0]
    assert (
        "while step answers asks in rounds"
        in problems({"margins": {"bits": 0.1}, "relative_margins": {"fact": 0.1}})[0]
    )


def test_an_undecided_fixed_verdict_says_what_a_second_look_costs(tmp_path: Path) -> None:
    right = some_right(40, 0.8)
    assert any(
        "8 % with a second one on twice the items" in note
        for note in judge_facts(tmp_path, {"tuned": right, "a": right}).notes
    )


CHANGES = {
    "mode": Change("adaptive"),
    "margins": Change({"fact": 0.3, "loop": 0.2}),
    "relative_margins": Change({"bits_per_byte": 0.5}),
    "alpha": Change(0.2),
    "familywise": Change(True, inputs="two"),
    "power": Change(0.9),
    "resamples": Change(300),
    "discordance": Change(0.2),
    "max_flips": Change(0.01),
    "explains": Change(("b",), inputs="two"),
    "slices.by": Change(("intent",)),
    "slices.margin": Change(0.3),
    "slices.min_items": Change(12),
    "prices.machine_per_hour": Change(3.6),
    "prices.batch": Change(8, {"prices.machine_per_hour": 3.6}),
    "prices.endpoints": Change({"a": {"input": 1.0, "output": 2.0}}),
    "prices.currency": Change("EUR", {"prices.machine_per_hour": 3.6}),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    """Case with three measures, one of them an amount, and two slice dimensions."""
    draw = random.Random(0)
    right, bits = some_right(40, 0.8), [draw.uniform(0.8, 1.2) for _ in range(40)]
    tags = [{"kind": "faq" if index < 30 else "edge", "intent": f"i{index % 2}"} for index in range(40)]
    models = {"tuned": 0, "a": 4, "b": 2}
    items = (
        items_of("fact", {name: flipped(right, flips, 1) for name, flips in models.items()}, tags)
        + items_of(
            "loop", {name: [float(index < flips) for index in range(40)] for name, flips in models.items()}, tags
        )
        + items_of(
            "bits_per_byte",
            {name: [value + draw.gauss(0.01, 0.1) * flips for value in bits] for name, flips in models.items()},
            tags,
        )
    )
    timed = {
        "end_to_end_s": Figure(value=1.5), "end_to_end_s_batch_8": Figure(value=4.0), "prompt_tokens": Figure(value=80), "answer_tokens": Figure(value=30)
    }  # fmt: skip
    entries = {"tuned": {"figures": timed}, "a": {"figures": timed}}
    summary = write_step_scores(
        folder / "answers", {"fact": FACT, "loop": LOOP, "bits_per_byte": BITS}, items, **entries
    )
    settings = {"margins": {"fact": 0.1}, "relative_margins": {"bits_per_byte": 0.3}, "resamples": 200}
    more = {"two": verdict_inputs(folder, ["a", "b"], summary)}
    yield Case(folder, verdict_inputs(folder, ["a"], summary), settings, result=whole, more=more)


def test_metrics_are_figures_by_model(tmp_path: Path) -> None:
    right = some_right(50, 0.8)
    judge_facts(tmp_path, {"tuned": right, "a": right})
    figures = json.loads((tmp_path / "step-out" / "metrics.json").read_text("utf-8"))
    assert figures["a"]["fact"] == 0.8 and figures["tuned"]["size_bytes"] > 0


def test_a_candidate_equal_to_the_baseline_on_amounts_is_judged(tmp_path: Path) -> None:
    near = Measure(title="ROUGE-L", binary=False)
    items = items_of("rouge_l", {"tuned": [0.5] * 60, "same": [0.5] * 60}) + items_of(
        "one", {"tuned": [0.5], "same": [0.5]}
    )
    summary = write_step_scores(tmp_path / "answers", {"rouge_l": near, "one": near}, items)
    found = judge(tmp_path, [summary], ["same"], {"rouge_l": 0.2}).comparisons["same"]
    assert found.decision == "ship" and found.measures["rouge_l"].p == 1.0
    assert found.measures["one"].detectable == 1.0, "one item shows nothing"


def test_a_relative_margin_counts_that_the_baseline_is_estimated(tmp_path: Path) -> None:
    """If every text loses exactly the margin, shipping is the error that alpha limits."""
    draw, shipped = random.Random(0), 0
    for trial in range(40):
        bits = [draw.lognormvariate(0, 0.5) for _ in range(60)]
        lost = [value * (1.05 + draw.gauss(0, 0.02)) for value in bits]
        pairs = Pairs(BITS, bits, lost, [1.0] * 60, [str(index) for index in range(60)])
        gate = Gate(measure=BITS, step="x", margin=0.05, relative=True)
        shipped += compare_measure(pairs, gate, Rules(0.05, 0.8, 300, trial)).answer == "yes"
    assert shipped <= 5, "6 of 40 has a chance of 1 % at alpha = 5 %"


def test_a_relative_margin_of_nothing_is_refused(tmp_path: Path) -> None:
    summary = write_step_scores(
        tmp_path / "answers", {"kl": BITS}, items_of("kl", {"tuned": [0.0] * 9, "a": [0.1] * 9})
    )
    with pytest.raises(ConfigError, match="the baseline's value is 0"):
        judge(tmp_path, [summary], ["a"], {}, relative_margins={"kl": 0.05})


def test_scores_of_another_baseline_are_refused(tmp_path: Path) -> None:
    summary = write_step_scores(
        tmp_path / "answers", {"fact": FACT}, items_of("fact", {"a": [1.0] * 9, "tuned": [1.0] * 9}), baseline="a"
    )
    with pytest.raises(ConfigError, match="answers.inputs.baseline"):
        judge(tmp_path, [summary], ["a"])


def test_one_cluster_that_is_lost_is_one_piece_of_evidence(tmp_path: Path) -> None:
    right = some_right(60, 1.0)
    lost = [0.0 if index < 15 else 1.0 for index in range(60)]
    tags = [{"kind": "edge" if index < 15 else "faq"} for index in range(60)]
    items = [
        item.model_copy(update={"cluster": "one" if index < 15 else str(index)})
        for index, item in enumerate(items_of("fact", {"tuned": right, "a": lost}, tags))
    ]
    summary = write_step_scores(tmp_path / "answers", {"fact": FACT}, items)
    found = judge(tmp_path, [summary], ["a"]).comparisons["a"]
    assert not any(item.harmed for item in found.slices)


def test_candidates_may_share_alpha(tmp_path: Path) -> None:
    right = some_right(500, 0.8)
    models = {"tuned": right, "a": right, "b": right}
    assert any("ships with probability 5%" in note for note in judge_facts(tmp_path / "1", models).notes)
    shared = judge_facts(tmp_path / "2", models, familywise=True)
    assert shared.alpha == 0.025 and not any("ships with probability" in note for note in shared.notes)


def test_a_parent_explains_and_is_never_shipped(tmp_path: Path) -> None:
    right = some_right(500, 0.8)
    models = {"tuned": right, "floats": right, "packed": flipped(right, 60, 5)}
    found = judge_facts(tmp_path / "1", models, explains=("floats",), familywise=True)
    assert (found.decision, found.shipped, found.alpha) == ("do not ship", None, 0.05), "it does not share alpha"
    assert found.comparisons["floats"].decision == "ship" and found.models["floats"].role == "parent"
    assert list(found.proposed) == ["packed"] and list(found.comparisons) == ["floats", "packed"]
    assert judge_facts(tmp_path / "2", models).shipped == "floats"


def test_sharing_alpha_raises_the_margin_that_the_items_can_decide(tmp_path: Path) -> None:
    right = some_right(200, 0.8)
    models = {"tuned": right, "a": right, "b": right}
    own = judge_facts(tmp_path / "1", models)
    shared = judge_facts(tmp_path / "2", models, familywise=True)
    assert own.test.minimum_detectable["fact"] == minimum_detectable(200, 0.06, 0.05, 0.8) < 0.05
    assert shared.test.minimum_detectable["fact"] == minimum_detectable(200, 0.06, 0.025, 0.8) > 0.05
    assert [any("200 items are too few" in note for note in found.notes) for found in (own, shared)] == [False, True]


def test_wordings_of_one_question_are_no_independent_evidence(tmp_path: Path) -> None:
    """500 answers that flip in clusters of ten carry as much evidence as 50."""
    right = some_right(500, 0.8)
    lost = {"tuned": right, "worse": [0.0 if index // 10 in (3, 9) else value for index, value in enumerate(right)]}
    alone = items_of("fact", lost)
    together = [item.model_copy(update={"cluster": str(index // 10)}) for index, item in enumerate(alone)]
    found = [
        judge(tmp_path / name, [write_step_scores(tmp_path / name / "answers", {"fact": FACT}, items)], ["worse"])
        .comparisons["worse"]
        .measures["fact"]
        for name, items in (("alone", alone), ("together", together))
    ]
    assert found[0].difference == found[1].difference
    assert found[1].low < found[0].low - 0.01 and found[1].high >= found[0].high
