"""The result in words: what may ship, why, its cost; what is missing; what smaller models would save and lose."""

import pytest
from verdict_samples import CODE_LENGTH, GATES, a_verdict, asked, compared, frontier, in_slice, measured, shipping

from tasks.evaluate.verdict.comparison import Rules, compare_measure
from tasks.evaluate.verdict.pairs import pair_items
from tasks.evaluate.verdict.power import items_needed
from tasks.report.words.result import candidate_text, result_of
from tasks.report.words.wording import bounded, items_to_decide, nearest_candidate, open_loss, times_faster
from tasks.shared.formats.records import Figure
from tasks.shared.formats.verdict import Comparison, Gate
from tests.score_samples import FACT, flipped, items_of, some_right

MINUS = "\N{MINUS SIGN}"


def test_what_ships_is_named_with_its_reason_its_cost_and_the_steps_below() -> None:
    result = result_of(frontier())
    assert result.line == (
        "Ship: the smallest model that may ship, quick, is 91.7 MB, 2.9x smaller and 2.8x faster than tuned. All 3 measures that decide are "
        "within their margins; the closest, fact accuracy, loses 0.6 points, at most 4.6 with 95 % confidence (margin 5)."
    )
    small, tiny = result.further
    assert small.startswith(
        "small (66.0 MB) would save another 25.7 MB (28 %) and run at 3.5x instead of 2.8x the speed of tuned, but may lose up to 8.4 points of "
        "fact accuracy (measured: 3.4, margin 5). About "
    )
    assert (
        "more test items for fact accuracy, 340 for intent accuracy and 180 for correct refusals would decide." in small
    )
    assert tiny.endswith(
        "but loses 41.0 points of fact accuracy [29.0, 53.0], margin 5; dropped after 32 of 240 items."
    )


def test_parents_are_neither_shipped_nor_nearest_nor_a_step_down() -> None:
    verdict = frontier()
    assert "int4" in verdict.comparisons and "int4" not in verdict.proposed
    nothing = frontier(
        decision="do not ship", shipped=None, comparisons={**verdict.comparisons, "quick": asked(64, -0.3, 0.1)}
    )
    assert nearest_candidate(nothing) == "small", "int4 would ship, but only explains"
    smaller = {
        name: model.model_copy(update={"size_bytes": 5}) if name == "int4" else model
        for name, model in verdict.models.items()
    }
    assert not any(line.startswith("int4") for line in result_of(frontier(models=smaller)).further)


def test_if_nothing_ships_the_nearest_candidate_and_what_fails_or_is_missing() -> None:
    assert result_of(a_verdict()).line == (
        "Do not ship: the nearest candidate, student (184 MB, 1.5x smaller than tuned), loses 6.1 points of fact accuracy [3.9, 8.3], margin 5."
    )
    open_only = a_verdict(decision="not enough data", comparisons={"gguf": compared(-0.03, 0.03)})
    assert result_of(open_only).line == (
        "Not enough data: gguf (66.0 MB, 4.1x smaller than tuned) may lose up to 6.0 points of fact accuracy (measured: 3.0, margin 5). "
        "About 550 new test items for fact accuracy would decide."
    ), "the fixed test may not be looked at twice"
    adaptive = open_only.model_copy(update={"mode": "adaptive"})
    assert result_of(adaptive).text.endswith("About 360 more test items for fact accuracy would decide.")
    close = a_verdict(decision="not enough data", comparisons={"gguf": compared(-0.048, 0.03)})
    assert result_of(close).line.endswith(
        "Its loss of fact accuracy is so close to the margin that more items would hardly decide."
    )
    both = {
        name: found.model_copy(update={"answer": "unknown"})
        for name, found in close.comparisons["gguf"].measures.items()
    }
    both["intent"] = both["fact"]
    two = close.model_copy(
        update={"comparisons": {"gguf": close.comparisons["gguf"].model_copy(update={"measures": both})}}
    )
    assert "Its losses of intent accuracy and fact accuracy are so close to their margins" in result_of(two).line
    wide = a_verdict(decision="not enough data", comparisons={"gguf": compared(0.02, 0.3)})
    assert result_of(wide).line.endswith(
        "More than 25 times as many items would be needed for intent accuracy and fact accuracy."
    )
    nobody = a_verdict(decision="not enough data", comparisons={})
    assert result_of(nobody).line == "Not enough data: no candidate was compared with tuned."


@pytest.mark.parametrize(("lost", "gained"), [(8, 8), (9, 7), (9, 9)])
def test_items_to_decide_agree_with_the_exact_number_for_equal_models(lost: int, gained: int) -> None:
    right = some_right(192, 0.8)
    items = items_of("fact", {"tuned": right, "a": flipped(right, lost, gained)})
    gate, rules = Gate(measure=FACT, step="answers", margin=0.03), Rules(0.05, 0.8, 500, 0)
    found = compare_measure(pair_items(FACT, items, "tuned", "a"), gate, rules)
    needed = items_to_decide(found)
    assert found.answer == "unknown" and needed is not None and needed > 192
    if lost == gained:
        assert needed == pytest.approx(items_needed(0.03, (lost + gained) / 192, 0.05, 0.8), rel=0.12)
    else:
        assert needed > 2 * items_needed(0.03, (lost + gained) / 192, 0.05, 0.8), (
            "a measured loss leaves less of the margin"
        )


def test_faster_is_only_what_was_timed_in_the_same_engine() -> None:
    models = a_verdict().models
    figures = {name: figure for name, figure in models["gguf"].figures.items() if name != "speed_ratio"}

    def told(**changed: Figure) -> tuple[float | None, str]:
        gguf = models["gguf"].model_copy(update={"figures": figures | changed})
        verdict = shipping().model_copy(update={"models": models | {"gguf": gguf}})
        return times_faster(verdict, "gguf"), result_of(verdict).line

    ratio, line = told()
    assert ratio is None and "gguf is 66.0 MB, 4.1x smaller than tuned; speed not measured." in line, (
        "131 tokens/s against 46, in another engine"
    )
    ratio, line = told(speed_ratio=Figure(value=1.3, low=0.9, high=1.5))
    assert ratio == 1.3 and "4.1x smaller than tuned, at 1.3x its speed." in line, "not shown to be faster"
    assert times_faster(shipping(), "tuned") == 1.0


def test_bounds_in_words() -> None:
    gate = GATES["fact"]
    assert (
        bounded(gate, measured(0.8, -0.012, 0.022), 0.05)
        == "loses 1.2 points, at most 3.4 with 95 % confidence (margin 5)"
    )
    assert (
        bounded(gate, measured(0.8, 0.005, 0.02), 0.05)
        == "gains 0.5 points and loses at most 1.5 with 95 % confidence (margin 5)"
    )
    assert (
        bounded(gate, measured(0.8, 0.03, 0.02), 0.025)
        == "gains 3.0 points, at least 1.0 with 97.5 % confidence (margin 5)"
    )
    assert (
        bounded(gate, measured(0.8, 0.0, 0.02), 0.05)
        == "is unchanged and loses at most 2.0 with 95 % confidence (margin 5)"
    )
    worse = measured(1.02, -0.02, 0.01, retention=None, retention_low=None, retention_high=None)
    assert bounded(CODE_LENGTH, worse, 0.05) == (
        "is 0.0200 bits per byte worse, at most 0.0300 with 95 % confidence (margin 0.05)"
    )
    assert open_loss(gate, measured(0.8, 0.01, 0.08)) == (
        "may lose up to 7.0 points of fact accuracy (measured: 1.0 gained, margin 5)"
    ), "what is open is not called a loss"
    assert open_loss(CODE_LENGTH, worse.model_copy(update={"low": -0.07})) == (
        "may be up to 0.0700 bits per byte worse in code length (measured: 0.0200, margin 0.05)"
    )
    both = a_verdict(comparisons={"gguf": compared(-0.055, 0.02), "student": compared(-0.2)})
    assert nearest_candidate(both) == "gguf", "an open question is nearer to shipping than a shown loss"


def test_other_units_slices_and_failures_in_words() -> None:
    longer = measured(1.02, -0.12, 0.03, retention=None, retention_low=None, retention_high=None)
    gates = GATES | {"code_length": CODE_LENGTH}
    verdict = a_verdict(
        gates=gates, comparisons={"gguf": compared(0.0, decision="do not ship", measures={"code_length": longer})}
    )
    assert "is 0.120 bits per byte worse in code length [0.0900, 0.150], margin 0.05." in candidate_text(
        verdict, "gguf"
    )
    harmed = [in_slice("language", "et", "fact", -0.21, n=34), in_slice("kind", "faq", "fact", -0.01)]
    line = result_of(a_verdict(comparisons={"gguf": compared(0.0, decision="do not ship", slices=harmed)})).line
    assert line.endswith(
        "loses 21.0 points of fact accuracy [15.0, 27.0] where language is et (34 items), slice margin 10."
    )
    models = a_verdict().models
    broken = models | {
        "int4": models["int4"].model_copy(update={"scores": {}, "failures": {"speed": "out of memory."}})
    }
    comparison = Comparison(decision="not enough data", measures={})
    line = result_of(a_verdict(models=broken, comparisons={"int4": comparison})).line
    assert "int4 (121 MB, 2.2x smaller than tuned) could not be measured in speed (out of memory)." in line
    held = compared(0.0, decision="not enough data", reasons=["evidence 31 is too little among 3 (e-BH at 0.05)"])
    assert "gguf (66.0 MB, 4.1x smaller than tuned) may not ship (evidence 31" in text_of(held)
    flipping = compared(-0.03, 0.03, decision="do not ship", reasons=["fact: 45% of the answers changed"])
    assert text_of(flipping).endswith("was rejected (fact: 45% of the answers changed)."), (
        "what is open is not the reason"
    )


def text_of(gguf: Comparison) -> str:
    return candidate_text(a_verdict(comparisons={"gguf": gguf}), "gguf")
