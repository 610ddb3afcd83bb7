"""What a sweep comes to: its best candidate by verdict, what that does not show, its table and its page."""

import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.sweeps.caveats import best_line, caveats
from flows.sweeps.figures import sweep_figures
from flows.sweeps.page import render, write_page
from flows.sweeps.results import Job, Sweep, short_names, sweep_name
from flows.sweeps.table import show_jobs
from tasks.shared.errors import ConfigError
from tasks.shared.text.numbers import MINUS
from tests.verdict_samples import EVIL, a_verdict, compared, measured, measures

TEMPERATURE = "steps.student.temperature"


def job(*own: str, fact: float = -0.02, half: float = 0.022, size: float = 184, **changes: Any) -> Job:
    """A job with one candidate.  fact: its difference on the measure that moves, with bounds at `half` to either side."""
    models = {"tuned": measures("baseline", 269, 46, 0.81), "student": measures("candidate", size, 66, 0.75)}
    verdict = a_verdict(models=models, comparisons={"student": compared(fact, half)})
    return Job(["+recipe=trial", *own], seconds=90.0, verdict=verdict, judge="verdict", **changes)


def failed(*own: str, message: str = "it died") -> Job:
    return Job(["+recipe=trial", *own], code=2, error=ConfigError("step student", message, "a student"))


def at(value: object, **changes: Any) -> Job:
    return job(f"{TEMPERATURE}={value}", **changes)


def sweep(*jobs: Job) -> Sweep:
    return Sweep("trial-0123abcd", jobs)


def best_job(*jobs: Job) -> int | None:
    best = sweep(*jobs).best
    return best.job if best else None


def test_the_verdict_comes_before_the_headroom_which_is_at_the_pessimistic_bound() -> None:
    assert best_job(at(2, fact=-0.06), at(4, fact=-0.04), at(6, fact=-0.02)) == 2
    assert best_job(at(2, fact=-0.01, half=0.036), at(4, fact=-0.02, half=0.01)) == 1, (
        "a better mean of wider bounds has less headroom"
    )
    wide = at(2)
    assert wide.verdict is not None
    stopped = compared(-0.0, decision="do not ship", reasons=["harmed where language is et"])
    wide.verdict = wide.verdict.model_copy(update={"comparisons": {"student": stopped}})
    assert best_job(wide, at(4, fact=-0.04)) == 1, "harm in a slice outweighs any headroom"


def test_headroom_is_that_of_the_measure_that_has_least() -> None:
    entry = sweep(at(2, fact=-0.02)).entries[0]
    assert entry.headroom == pytest.approx((0.05 - 0.042) / 0.05), (
        "fact: 4.2 of 5 points are used up; refusal has 0.2 of its margin left"
    )
    assert sweep(at(2, fact=-0.003)).entries[0].headroom == pytest.approx(0.2), "here it is the refusals'"


def test_equals_are_told_apart_by_size_then_by_order() -> None:
    assert best_job(at(2), at(4, size=150), at(6, size=150)) == 1


def test_a_measure_that_was_not_taken_leaves_no_headroom() -> None:
    short, full = at(2, fact=-0.01), at(4, fact=-0.04)
    assert short.verdict is not None
    found = {"intent": measured(0.88, 0.0, 0.01)}
    open_ = compared(0.0, measures=found, decision="not enough data", reasons=["fact: not measured"])
    short.verdict = short.verdict.model_copy(update={"comparisons": {"student": open_}})
    assert best_job(short, full) == 1


def test_where_bounds_overlap_the_best_is_not_called_better() -> None:
    close = caveats(sweep(at(2, fact=-0.02), at(4, fact=-0.01)))
    assert close[0].startswith("The best is not shown to be better than any other: the 90 % bounds overlap")
    mixed = caveats(sweep(at(2, fact=-0.02), at(4, fact=-0.01), at(6, fact=-0.3)))
    assert "not shown to be better than job 0: " in mixed[0] and mixed[0].endswith(
        "It is shown to be better than job 2."
    )
    clear = caveats(sweep(at(2, fact=-0.3), at(4, fact=-0.01)))
    assert clear[0].startswith("It is shown to be better than every other")


def test_a_best_one_that_is_only_the_first_of_equals_is_called_that() -> None:
    said = caveats(sweep(at(2), at(4), at(6, fact=-0.04)))
    assert said[0].startswith(
        "job 1: equal in verdict, headroom and size; the best is only the first of them. The best is not shown"
    )
    assert "equal" not in " ".join(caveats(sweep(at(2), at(4, size=150))))


def test_several_models_are_several_chances() -> None:
    said = " ".join(caveats(sweep(*(at(value) for value in (2, 4, 6, 8)))))
    assert "4 models were judged" in said and "up to 20 % (steps.verdict.alpha=0.0125 makes that 5 % at most)" in said
    same = [at(value) for value in (2, 4)]
    for one in same:
        assert one.verdict is not None
        models = one.verdict.models | {"student": one.verdict.models["student"].model_copy(update={"digest": "d" * 64})}
        one.verdict = one.verdict.model_copy(update={"models": models})
    assert caveats(sweep(*same)) == [], "one model in two jobs is judged once, and is no rival of itself"


def test_jobs_with_other_baselines_margins_or_items_are_not_compared_in_silence() -> None:
    one, other = at(2, fact=-0.01), at(4, fact=-0.3)
    assert other.verdict is not None
    models = other.verdict.models | {"tuned": measures("baseline", 269, 46, 0.5)}
    gates = other.verdict.gates | {"fact": other.verdict.gates["fact"].model_copy(update={"margin": 0.1})}
    test = other.verdict.test.model_copy(update={"items": {"fact": 20}})
    other.verdict = other.verdict.model_copy(update={"models": models, "gates": gates, "test": test})
    said = " ".join(caveats(sweep(one, other)))
    for words in (
        "different baselines",
        "margins differ",
        "numbers of test items differ",
        "not shown to be better than any other",
    ):
        assert words in said


def test_jobs_that_failed_or_have_no_verdict_do_not_count(capsys: pytest.CaptureFixture[str]) -> None:
    assert best_job(failed(f"{TEMPERATURE}=2"), at(4), Job(["+recipe=trial", f"{TEMPERATURE}=6"])) == 1
    none = sweep(failed("seed=0"), Job(["+recipe=trial", "seed=1"]))
    assert none.best is None and best_line(none) == "" and caveats(none) == []
    show_jobs(none, Console(width=80))
    said = capsys.readouterr().out
    assert "job 0 failed: step student: it died" in said and "done" in said and "Best" not in said


def test_one_number_is_an_axis_and_anything_else_stands_side_by_side() -> None:
    numbers = sweep(at(2), at(10), at(4)).axis
    assert (numbers.numeric, numbers.log, numbers.places, numbers.title) == (True, False, [2, 10, 4], TEMPERATURE)
    assert sweep(job("lr=1e-5"), job("lr=1e-3")).axis.log
    for jobs in (
        [job("seed=0"), job("seed=1")],
        [job("quantize@steps.int4=gptq"), job("quantize@steps.int4=rtn")],
        [job("a=1", "b=1"), job("a=2", "b=1.5")],
        [job("a=1"), job()],
    ):
        axis = sweep(*jobs).axis
        assert not axis.numeric and axis.places == [0, 1]


def test_names_are_cut_to_what_tells_them_apart() -> None:
    assert short_names(["steps.slim.ratio", "steps.student.ratio", "prune@steps.slim"]) == {
        "steps.slim.ratio": "slim.ratio", "steps.student.ratio": "student.ratio", "prune@steps.slim": "slim",
    }  # fmt: skip
    both = sweep(job("steps.slim.ratio=0.2", "~steps.report"), job("steps.slim.ratio=0.3", "+steps.x.text=a=b"))
    assert both.labels == ["ratio=0.2 ~report", "ratio=0.3 text=a=b"]


def test_the_same_sweep_has_the_same_name() -> None:
    name = sweep_name(["--multirun", "+recipe=trial", "a=1,2", "b=3", "runtime.parallel=2"])
    assert name == sweep_name(["b=3", "+recipe=trial", "a=1,2", "-m", "tracking=none", "hydra.sweep.dir=/tmp/x"])
    assert name.startswith("trial-") and re.fullmatch(r"[a-zA-Z0-9_-]+", sweep_name(["+recipe=../a,b"]))
    assert name != sweep_name(["+recipe=trial", "a=1,2,3", "b=3"])


@pytest.mark.parametrize("width", [80, 120, 180])
@pytest.mark.parametrize("several", [False, True])
def test_the_table_fits_the_terminal_and_names_the_best(
    width: int, several: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [
        at(2, fact=-0.06),
        at(4, fact=-0.01),
        failed(f"{TEMPERATURE}=[6]", message="[out of memory]"),
        at(10, fact=-0.03),
    ]
    if several:
        jobs = [
            Job(one.overrides, verdict=a_verdict() if one.verdict else None, judge="verdict", error=one.error)
            for one in jobs
        ]
    show_jobs(sweep(*jobs), Console(width=width))
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= width for line in lines if "failed: " not in line)
    said = "\n".join(lines)
    assert f"4 jobs over {TEMPERATURE}" in said and "temperature=[6]" in said and "[out of memory]" in said
    assert f"{MINUS}6.1" in said if several else f"{MINUS}1.0" in said
    assert (
        "Best by verdict: job 0 (temperature=2), do not ship: student"
        if several
        else "Best by verdict: job 1 (temperature=4), ship"
    ) in said
    assert (f"[{MINUS}3.2, +1.2]" in said) == (width > 80) or several, "bounds where there is room"


def test_a_panel_per_measure_and_candidate_tells_in_words_what_it_draws() -> None:
    figures = sweep_figures(sweep(at(2, fact=-0.03), at(4, fact=-0.01), failed(f"{TEMPERATURE}=6"), at(10, fact=-0.9)))
    assert list(figures) == ["student"] and len(figures["student"]) == 3
    fact = next(figure.svg for figure in figures["student"] if figure.title == "Fact accuracy")
    assert f"2 {MINUS}3.0 points [{MINUS}5.2, {MINUS}0.8]: non-inferior unknown; 4 {MINUS}1.0" in fact
    assert fact.count(">best<") == 1 and fact.count(">none<") == 1 and fact.count('class="margin"') == 1
    assert fact.count('class="arrow"') == 1, "what is ruined does not flatten the rest"
    lines = re.findall(r'<polyline points="([^"]+)"', fact)
    assert [len(places.split()) for places in lines] == [2, 1], "the line stops where there is no value"
    first, second = (float(place.partition(",")[0]) for place in lines[0].split())
    last = float(lines[1].partition(",")[0])
    assert (last - second) / (second - first) == pytest.approx(3, abs=0.01), "4 to 10 is three times 2 to 4"


def test_the_page_says_how_to_compare_the_best_with_the_next(tmp_path: Path) -> None:
    jobs = [
        at(value, fact=fact, folders={"student": tmp_path / f"s {value}"})
        for value, fact in ((2, -0.3), (4, -0.01), (6, -0.02))
    ]
    text = render(sweep(*jobs), tmp_path)
    assert f"python -m flows.compare &#39;{tmp_path}/s 6&#39; &#39;{tmp_path}/s 4&#39;" in text
    assert "flows.compare" not in render(sweep(*jobs[:2]), tmp_path), "here it is shown to be better"


def test_techniques_stand_by_name_and_long_overrides_by_number() -> None:
    by_name = sweep_figures(sweep(job("quantize@steps.int4=gptq"), job("quantize@steps.int4=rtn")))["student"][0].svg
    assert ">gptq<" in by_name and ">quantize@steps.int4<" in by_name and "<polyline" not in by_name
    long = [job(f"steps.slim.layers=[{number},11,12,13,14,15,16]", f"seed={number}") for number in range(8)]
    assert ">job (see the table)<" in sweep_figures(sweep(*long))["student"][0].svg


def test_the_page_holds_no_markup_of_others_and_leads_to_the_jobs_reports(tmp_path: Path) -> None:
    home = tmp_path / "artifacts"
    home.mkdir()
    jobs = [
        at(2, report="report", home=home, folders={"report": home / ".store/report/ab/out"}),
        failed(f"{TEMPERATURE}={EVIL}", message=EVIL),
    ]
    page = write_page(sweep(*jobs))
    assert page == write_page(sweep(*jobs)) == home / ".sweeps/trial-0123abcd.html"
    text = page.read_text("utf-8")
    assert 'href="../.store/report/ab/out/report.html"' in text and "<script" not in text and "<img" not in text
    assert [path.name for path in page.parent.iterdir()] == [page.name]
    assert 'data-theme="dark"' in render(sweep(*jobs), page.parent, theme="dark")
