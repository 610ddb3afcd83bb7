"""Timing rounds: order, failures, and speed ratios within a round."""

import math
import random
from pathlib import Path
from typing import Any

import pytest

from tasks.evaluate.models_under_test.model_under_test import Prompt
from tasks.evaluate.timing.engines import Effort, EngineName, Probe, Sample
from tasks.evaluate.timing.rounds import (
    Timed,
    below_one,
    median_with_range,
    named_by_engine,
    ratios,
    samples_in_engine,
    slower_notes,
    summarize,
    time_in_rounds,
    timings_of,
)
from tasks.shared.errors import EndpointError, ModelError

EFFORT = Effort(4, 2, (8,), 64, 5.0, "off", "", 1, "cpu")


def probe(name: str, engine: EngineName = "llama.cpp", first: bool = True) -> Probe:
    return Probe(name, engine, Path("weights"), "", Prompt([]), first)


def speeds(*values: float) -> list[Sample]:
    return [{"tokens_per_second": value, "tokens_per_second_batch_8": 4 * value} for value in values]


def test_rounds_go_over_all_models_before_the_next_begins() -> None:
    asked = []

    def take(model: Probe, _: Effort) -> Sample:
        asked.append(model.name)
        return {"load_s": float(len(asked))}

    timed = time_in_rounds([probe("a"), probe("b")], EFFORT, 3, "a", take)
    assert asked == ["a", "b"] * 3
    assert [sample["load_s"] for sample in timed[1].samples] == [2, 4, 6]


def test_a_model_that_fails_is_asked_no_more_and_the_others_go_on() -> None:
    asked = []

    def take(model: Probe, _: Effort) -> Sample:
        asked.append(model.name)
        if asked.count("b") == 2 and model.name == "b":
            raise EndpointError("url", "no answer")
        return {"load_s": 1.0}

    timed = time_in_rounds([probe("a"), probe("b")], EFFORT, 4, "a", take)
    assert asked == ["a", "b", "a", "b", "a", "a"]
    assert (timed[1].samples, timed[1].failure) == ([], "url: no answer")
    assert len(timed[0].samples) == 4


def test_without_the_baseline_s_speed_there_is_nothing_to_compare() -> None:
    def take(model: Probe, _: Effort) -> Sample:
        raise EndpointError("url", "no answer")

    with pytest.raises(ModelError, match="baseline a: url: no answer"):
        time_in_rounds([probe("a")], EFFORT, 2, "a", take)
    timed = time_in_rounds([probe("a", "vllm", first=False)], EFFORT, 2, "a", take)
    assert timed[0].failure, "in a further engine it may fail"


def test_median_and_range_of_what_every_repeat_tells() -> None:
    found = summarize(
        [
            {"load_s": 3.0, "peak_memory_bytes": 10.0, "answer_tokens": 4.0, "energy_wh_per_1000": 1.0},
            {"load_s": 1.0, "peak_memory_bytes": 30.0, "answer_tokens": 4.0},
            {"load_s": 2.0, "peak_memory_bytes": 20.0, "answer_tokens": 4.0},
        ]
    )
    assert list(found) == ["load_s", "peak_memory_bytes", "answer_tokens"]
    load, peak, tokens = found.values()
    assert (load.value, load.low, load.high, load.bounds, load.better) == (2.0, 1.0, 3.0, "range of 3 repeats", "lower")
    assert (peak.value, peak.low, peak.high) == (30.0, 10.0, 30.0), "a peak is the largest seen"
    assert (tokens.value, tokens.low, tokens.bounds) == (4.0, None, "")
    assert summarize([]) == {}


def test_one_repeat_has_no_range() -> None:
    found = median_with_range([2.0], "rounds", "x", "higher")
    assert (found.value, found.low, found.high, found.bounds) == (2.0, None, None, "")


def test_ratios_are_taken_within_a_round() -> None:
    """A machine at half speed in the second round slows both models."""
    found = ratios(speeds(20, 10, 22), speeds(10, 5, 10), "speed_ratio")
    assert set(found) == {"speed_ratio", "speed_ratio_batch_8"}
    ratio = found["speed_ratio"]
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2.0, 2.0, 2.2))
    assert (ratio.bounds, ratio.unit, ratio.better) == ("range of 3 rounds", "x", "higher")
    assert ratios(speeds(1), [], "speed_ratio") == ratios([], speeds(1), "speed_ratio") == {}


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (
            (8, 7, 9),
            ["student is slower than its parent slim: 0.80x [0.70, 0.90] in llama.cpp, one stream."],
        ),
        ((8, 7, 11), []),
        ((9.9, 9.7, 9.9), []),
        ((8,), []),
        ((12, 11, 13), []),
    ],
)
def test_slower_is_only_said_when_the_rounds_show_it(own: tuple[float, ...], said: list[str]) -> None:
    one = [{"tokens_per_second": value} for value in own]
    assert slower_notes("student", "slim", "llama.cpp", one, [{"tokens_per_second": 10.0}] * len(own)) == said


def test_an_equally_fast_model_is_rarely_called_slower() -> None:
    """All ratios below 1 are not enough: equal models do that in one of eight triples."""
    draw = random.Random(0)
    rounds = [[math.exp(draw.gauss(0, 0.05)) for _ in range(3)] for _ in range(4000)]
    below = sum(max(ratios) < 1 for ratios in rounds) / len(rounds)
    assert 0.1 < below < 0.15 and sum(map(below_one, rounds)) / len(rounds) < 0.055


def test_slower_together_is_told_apart_from_slower_alone() -> None:
    """Weight-only integers: faster for one stream, slower for many."""
    own: Any = [{"tokens_per_second": 13, "tokens_per_second_batch_8": 75}] * 2
    other: Any = [{"tokens_per_second": 10, "tokens_per_second_batch_8": 100}] * 2
    (said,) = slower_notes("int4", "student", "vllm", own, other)
    assert "0.75x" in said and said.endswith("in vllm, 8 streams together.")


def test_figures_of_a_further_engine_carry_its_name() -> None:
    figures = summarize(speeds(3.0))
    assert list(named_by_engine(figures, "vllm", first=True)) == ["tokens_per_second", "tokens_per_second_batch_8"]
    assert list(named_by_engine(figures, "vllm", first=False)) == [
        "tokens_per_second (vllm)",
        "tokens_per_second_batch_8 (vllm)",
    ]
    timed = [Timed(probe("a", "vllm", first=False), speeds(1)), Timed(probe("a"), speeds(2)), Timed(probe("b"), [])]
    assert [item.probe.engine for item in timings_of(timed, "a")] == ["llama.cpp", "vllm"]
    assert samples_in_engine(timed, "a", "vllm") == speeds(1) and samples_in_engine(timed, "b", "transformers") == ()
