"""The report: self-contained, escaped, complete, the same twice, and whole when parts are missing."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import pytest
from verdict_samples import EVIL, a_verdict, all_inputs, flip, make, measured, measures, only_verdict

from tasks.report import html
from tasks.report.cards import as_blocks, brief
from tasks.report.content import Report, choose_flips
from tasks.report.wording import decision_line
from tasks.shared.errors import DataError, TechniqueError
from tasks.shared.technique import Inputs
from tasks.shared.verdict import Comparison
from tests.settings_case import Case, Change


class Page(HTMLParser):
    """Tags with attributes, text outside style, and whether every tag is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)


def test_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    page, _ = make(tmp_path, all_inputs(tmp_path, a_verdict()))
    parsed = Page(page)
    assert not parsed.open
    assert not {"script", "link", "img", "iframe", "object", "base"} & {tag for tag, _ in parsed.tags}
    for _, attributes in parsed.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert all(str(attributes[name]).startswith("#") for name in ("src", "href") if name in attributes)
    assert not re.search(r"@import|url\(", page)
    assert "default-src 'none'" in page


def test_answers_and_names_are_escaped_and_kept(tmp_path: Path) -> None:
    verdict = a_verdict()
    models = {"<b>x</b>" if name == "gguf" else name: model for name, model in verdict.models.items()}
    comparisons = {"<b>x</b>" if name == "gguf" else name: c for name, c in verdict.comparisons.items()}
    page, _ = make(
        tmp_path, all_inputs(tmp_path, a_verdict(models=models, comparisons=comparisons)), title=EVIL, max_flips=999
    )
    assert "<script" not in page and "<b>" not in page and "evil.example/p.png&#34;&gt;" in page
    assert EVIL in Page(page).text and "<b>x</b>" in Page(page).text


def test_every_model_comparison_and_flip_is_there(tmp_path: Path) -> None:
    verdict = a_verdict()
    page, data = make(tmp_path, all_inputs(tmp_path, verdict), max_flips=999)
    text = Page(page).text
    assert (
        page.count('<details class="flip">')
        == len(verdict.flips)
        == sum(len(group["shown"]) for group in data["flips"])
    )
    for flipped in verdict.flips:
        assert flipped.id in text
    for name, model in verdict.models.items():
        assert name in text and model.format in text
    assert len(data["comparisons"]) == 16
    assert [row["name"] for row in data["models"]] == ["tuned", "slim", "student", "int4", "gguf", "teacher"]
    text = text.replace("\N{NARROW NO-BREAK SPACE}", " ")
    for shown in (
        "The nearest candidate, student, loses 6.1 points of fact accuracy [3.9, 8.3], margin 5",
        "45 days",
        "0.971",
        "0.414",
        "481 220",
    ):
        assert shown in text
    assert page.count('role="img"') == 3 + 1 + 1 + 1 + 1
    assert Report.model_validate(data).model_dump(mode="json") == data


def test_svg_is_named_described_and_unique(tmp_path: Path) -> None:
    page, _ = make(tmp_path, all_inputs(tmp_path, a_verdict()))
    tags = Page(page).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in tags:
        if tag == "svg":
            assert set(str(attributes["aria-labelledby"]).split()) <= set(ids)


def test_same_input_gives_same_bytes(tmp_path: Path) -> None:
    first = make(tmp_path / "a", all_inputs(tmp_path / "a", a_verdict()))
    second = make(tmp_path / "b", all_inputs(tmp_path / "b", a_verdict()))
    assert first == second


@pytest.mark.parametrize("theme", ["auto", "light", "dark"])
def test_theme_is_on_the_page(tmp_path: Path, theme: str) -> None:
    page, _ = make(tmp_path, only_verdict(tmp_path, a_verdict()), theme=theme)
    assert f'data-theme="{theme}"' in page


def test_missing_parts_say_so(tmp_path: Path) -> None:
    bare = {"scores": {}, "slices": {}, "figures": {}}
    models = {
        "tuned": measures("baseline", 269, 46, 0.8, **bare, parameters=None),
        "tiny": measures("candidate", 20, 46, 0.8, **bare, parameters=None),
    }
    comparison = Comparison(decision="do not ship", measures={})
    verdict = a_verdict(
        reference=None, models=models, comparisons={"tiny": comparison}, flips=[], notes=[], versions={}
    )
    page, data = make(tmp_path, only_verdict(tmp_path, verdict), command="python -m flows.compress +recipe=x")
    text = Page(page).text
    assert text.count("not measured") > 15 and "None" not in text
    assert "No traces were given" in text and "No answer changed" in text and "+recipe=x" in text
    assert data["corpus"] == [] and data["nearest"] == "tiny" and "<svg" not in page
    assert "was not measured on intent accuracy" in decision_line(verdict)


def test_verdict_without_candidates_and_with_one_point(tmp_path: Path) -> None:
    verdict = a_verdict(models={"tuned": measures("baseline", 269, 46, 0.8)}, comparisons={}, flips=[], reference=None)
    page, _ = make(tmp_path, only_verdict(tmp_path, verdict))
    assert "no candidate was compared" in Page(page).text


def test_broken_files_are_refused_with_their_line(tmp_path: Path) -> None:
    inputs = all_inputs(tmp_path, a_verdict())
    (tmp_path / "tuned" / "loss.csv").write_text("step,train_loss,validation_loss\n1,2.0,\n2,high,\n")
    with pytest.raises(DataError, match=r"loss\.csv:3: 'high'"):
        make(tmp_path, inputs)
    (tmp_path / "tuned" / "loss.csv").write_text("step,loss\n1,2.0\n")
    with pytest.raises(DataError, match="also train_loss, validation_loss"):
        make(tmp_path / "2", inputs)
    (tmp_path / "tuned" / "loss.csv").unlink()
    (tmp_path / "corpus" / "card.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        make(tmp_path / "3", inputs)


def test_no_verdict_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TechniqueError, match=r"inputs\.verdict"):
        make(tmp_path, Inputs({}))


def test_diverged_loss_is_a_gap_not_a_crash(tmp_path: Path) -> None:
    inputs = all_inputs(tmp_path, a_verdict())
    (tmp_path / "tuned" / "loss.csv").write_text("step,train_loss,validation_loss\n1,2.0,\n2,nan,inf\n")
    _, data = make(tmp_path, inputs)
    assert data["training"][0]["points"][1]["train_loss"] is None


def test_flips_are_taken_in_turn() -> None:
    flips = [flip("a", 1), flip("a", 2), flip("a", 4), flip("a", 5, "to_right"), flip("b", 1)]
    chosen = choose_flips(flips, 3)
    assert {(f.candidate, f.direction) for f in chosen} == {("a", "to_wrong"), ("a", "to_right"), ("b", "to_wrong")}
    assert choose_flips(flips, 0) == []


def test_cards_of_any_shape_become_tables() -> None:
    counts = {"train": {"rows": 1200, "kind": {"faq": 900}}, "test": {"rows": 300, "kind": {"faq": 200, "edge": 1}}}
    rows, kinds, overlap = as_blocks({"counts": counts, "overlap": {"max": 0.4123, "checked": True, "by": None}})
    assert (rows.title, rows.columns, rows.rows) == (
        "Counts",
        ["", "train", "test"],
        [["rows", "1\N{NARROW NO-BREAK SPACE}200", "300"]],
    )
    assert (kinds.title, kinds.rows) == ("Counts: kind", [["faq", "900", "200"], ["edge", "", "1"]])
    assert overlap.rows == [["max", "0.412"], ["checked", "yes"], ["by", "not measured"]]
    assert brief({"per": [{"a": 1}] * 3, "few": [1, 2]}) == {"per": "3 entries, in the artifact", "few": [1, 2]}
    assert as_blocks([]) and as_blocks({}) == [] and as_blocks("text")[0].rows == [["", "text"]]


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_colours_stand_out_in_every_theme() -> None:
    css = (
        Path(html.__file__)
        .with_name("html.css")
        .read_text(encoding="utf-8")
        .replace("#fff;", "#ffffff;")
        .replace("#111;", "#111111;")
    )
    themes = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in re.findall(r"\{[^{}]*--paper:[^{}]*\}", css)
    ]
    assert len(themes) == 4
    for theme in themes:
        paper = luminance(theme["paper"])
        for name in ("ink", "muted", "accent", "copper", "good", "bad", "unsure"):
            bright, dark = sorted((paper, luminance(theme[name])), reverse=True)
            assert (bright + 0.05) / (dark + 0.05) >= 4.5, (name, theme)


@pytest.mark.parametrize("figure", [0.0, 1.0])
def test_extreme_figures_draw(tmp_path: Path, figure: float) -> None:
    same = {
        name: measures("baseline" if name == "tuned" else "candidate", 100, 1e-9, figure)
        for name in ("tuned", "x" * 60)
    }
    result = measured(0.9, figure - 0.9, 0.0, margin=0.001)
    compared_all = {"x" * 60: Comparison(decision="do not ship", measures={"fact": result})}
    inputs = all_inputs(tmp_path, a_verdict(models=same, comparisons=compared_all))
    (tmp_path / "tuned" / "loss.csv").write_text("step,epoch,train_loss,validation_loss\n1,,2.0,\n")
    (tmp_path / "slim" / "influence.csv").write_text("layer,influence,dropped\n0,0,False\n")
    page, _ = make(tmp_path, inputs)
    assert page.count("<svg") == 7 and not re.search(r'"[^"]*\b(nan|inf)\b[^"]*"', page[page.index("<svg") :])


CHANGES = {
    "title": Change("Another heading"),
    "max_flips": Change(3),
    "theme": Change("dark"),
    "command": Change("make run"),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    yield Case(folder, all_inputs(folder / "inputs", a_verdict()))
