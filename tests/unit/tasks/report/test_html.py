"""The report: self-contained, escaped, complete, the same twice, and whole when parts are missing."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from verdict_samples import (
    CODE_LENGTH,
    EVIL,
    GATES,
    a_verdict,
    all_inputs,
    compared,
    flip,
    in_slice,
    make,
    measured,
    measures,
    only_verdict,
    score,
)

from tasks.report import html
from tasks.report.content.cards import as_blocks, brief
from tasks.report.content.report import Report, choose_flips
from tasks.report.words.result import result_of
from tasks.shared.errors import DataError, TechniqueError
from tasks.shared.formats.verdict import Comparison, NoiseFloor
from tasks.shared.technique import Inputs
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
        if tag not in ("meta", "br", "input"):
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
    assert "<script" not in page and "<b>x</b>" not in page and "evil.example/p.png&#34;&gt;" in page
    assert EVIL in Page(page).text and "<b>x</b>" in Page(page).text


def test_every_model_comparison_and_flip_is_there(tmp_path: Path) -> None:
    verdict = a_verdict()
    page, data = make(tmp_path, all_inputs(tmp_path, verdict), max_flips=999)
    text = Page(page).text
    assert (
        len(re.findall(r'<details class="flip ', page))
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
        "The nearest candidate, student (184 MB, 1.5x smaller than tuned), loses 6.1 points of fact accuracy [3.9, 8.3], margin 5",
        "45 days",
        "0.971",
        "0.414",
        "481 220",
    ):
        assert shown in text
    assert page.count('role="img"') == 3 + 1 + (1 + 3) + 4 + 1 + 1, (
        "trade-offs, speed, stages, forests, loss, influence"
    )
    assert Report.model_validate(data).model_dump(mode="json") == data


def test_svg_is_named_described_and_unique(tmp_path: Path) -> None:
    page, _ = make(tmp_path, all_inputs(tmp_path, a_verdict()))
    tags = Page(page).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in tags:
        if tag == "svg":
            assert set(str(attributes["aria-labelledby"]).split()) <= set(ids)


def test_plots_are_files_that_stand_alone(tmp_path: Path) -> None:
    verdict = a_verdict()
    models = {EVIL if name == "gguf" else name: model for name, model in verdict.models.items()}
    comparisons = {EVIL if name == "gguf" else name: found for name, found in verdict.comparisons.items()}
    page, _ = make(tmp_path, all_inputs(tmp_path, a_verdict(models=models, comparisons=comparisons)), theme="dark")
    files = sorted((tmp_path / "out" / "figures").iterdir())
    assert len(files) == page.count("<svg ") > 5 and all(re.fullmatch(r"[\w.-]+\.svg", file.name) for file in files)
    for file in files:
        content = file.read_text("utf-8")
        root = ElementTree.fromstring(content)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert not {"script", "image", "foreignObject"} & {part.tag.partition("}")[2] for part in root.iter()}
        assert "var(" not in content, "office programs know no variables"
        assert "#15191b" in content and "#fbfaf7" not in content, "dark paper alone"


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
    assert text.count("not measured") > 8 and "None" not in text
    assert "No traces were given" in text and "No answer changed" in text and "+recipe=x" in text
    assert data["corpus"] == [] and data["nearest"] == "tiny" and page.count("<svg") == 1, "sizes are known"
    assert "No slice was compared" in text and "given, not made by a step" in text
    assert "was not measured on intent accuracy" in result_of(verdict).line


def test_verdict_without_candidates_and_with_one_point(tmp_path: Path) -> None:
    verdict = a_verdict(models={"tuned": measures("baseline", 269, 46, 0.8)}, comparisons={}, flips=[], reference=None)
    page, _ = make(tmp_path, only_verdict(tmp_path, verdict))
    assert "no candidate was compared" in Page(page).text


def test_broken_files_are_refused_with_their_line(tmp_path: Path) -> None:
    inputs = all_inputs(tmp_path, a_verdict())
    (tmp_path / "tuned" / "out" / "loss.csv").write_text("step,train_loss,validation_loss\n1,2.0,\n2,high,\n")
    with pytest.raises(DataError, match=r"loss\.csv:3: 'high'"):
        make(tmp_path, inputs)
    (tmp_path / "tuned" / "out" / "loss.csv").write_text("step,loss\n1,2.0\n")
    with pytest.raises(DataError, match="also train_loss, validation_loss"):
        make(tmp_path / "2", inputs)
    (tmp_path / "tuned" / "out" / "loss.csv").unlink()
    (tmp_path / "corpus" / "out" / "card.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        make(tmp_path / "3", inputs)


def test_no_verdict_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TechniqueError, match=r"inputs\.verdict"):
        make(tmp_path, Inputs({}))


def test_diverged_loss_is_a_gap_not_a_crash(tmp_path: Path) -> None:
    inputs = all_inputs(tmp_path, a_verdict())
    (tmp_path / "tuned" / "out" / "loss.csv").write_text("step,train_loss,validation_loss\n1,2.0,\n2,nan,inf\n")
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


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_colors_stand_out_in_every_theme() -> None:
    css = (
        (Path(html.__file__).parent / "page" / "html.css")
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
    (tmp_path / "tuned" / "out" / "loss.csv").write_text("step,epoch,train_loss,validation_loss\n1,,2.0,\n")
    (tmp_path / "slim" / "out" / "influence.csv").write_text("layer,influence,dropped\n0,0,False\n")
    page, _ = make(tmp_path, inputs)
    assert page.count("<svg") == 3 + 1 + (1 + 3) + 1 + 1 + 1 and not re.search(
        r'"[^"]*\b(nan|inf)\b[^"]*"', page[page.index("<svg") :]
    )


def test_three_decisions_are_told_by_word_sign_and_color(tmp_path: Path) -> None:
    comparisons = {"student": compared(-0.01), "int4": compared(-0.04), "slim": compared(-0.8)}
    page, _ = make(tmp_path, all_inputs(tmp_path, a_verdict(comparisons=comparisons)))
    lines = page[page.index('<ul class="lines">') : page.index("Measures that decide")]
    for decision, sign in (("ship", "✓"), ("not enough data", "?"), ("do not ship", "✕")):
        assert f">{sign}</span> {decision}</span>" in lines


def test_flips_are_filtered_without_a_script(tmp_path: Path) -> None:
    flips = [flip("gguf", 1), flip("gguf", 3, "to_right"), flip("slim", 2)]
    page, data = make(tmp_path, all_inputs(tmp_path, a_verdict(flips=flips)))
    rules = page[page.index(".browser:has(") : page.index("</style>")]
    tags = Page(page).tags
    radios = {str(found["id"]) for tag, found in tags if tag == "input"}
    for rule in re.findall(r"#([\w-]+):checked\) \.flip:not\(\.(\w+)\)", rules):
        assert rule[0] in radios
    measures = list(data["gates"])
    for group, shown in enumerate(data["flips"], 1):
        for found in shown["shown"]:
            wanted = f'class="flip c{group} m{measures.index(found["measure"]) + 1} {found["direction"]}"'
            assert wanted in page
    assert f'id="candidate-{1 + [g["candidate"] for g in data["flips"]].index("slim")}"' in page
    names = {(found["name"], found["id"]) for tag, found in tags if tag == "input" and "checked" in found}
    assert {name for name, _ in names} == {"candidate", "direction", "measure"} and len(names) == 3


def test_one_candidate_and_six_with_long_names(tmp_path: Path) -> None:
    verdict = a_verdict()
    one, _ = make(tmp_path / "1", all_inputs(tmp_path / "1", a_verdict(comparisons={"gguf": compared(-0.01)})))
    assert "The nearest candidate" not in Page(one).text
    names = [f"a_rather_long_candidate_name_number_{i}" for i in range(6)]
    models = {"tuned": verdict.models["tuned"]} | {name: verdict.models["gguf"] for name in names}
    six = a_verdict(models=models, comparisons={name: compared(-0.04) for name in names}, flips=[flip(names[5], 1)])
    page, data = make(tmp_path / "6", all_inputs(tmp_path / "6", six))
    assert len(data["comparisons"]) == 24 and all(name in Page(page).text for name in names)


def test_measures_of_any_unit_and_number(tmp_path: Path) -> None:
    gates = GATES | {f"extra_{i}": GATES["fact"] for i in range(4)} | {"code_length": CODE_LENGTH}
    longer = measured(1.02, -0.12, 0.03, retention=None, retention_low=None, retention_high=None)
    comparison = compared(0.0, decision="do not ship", measures={"code_length": longer, "fact": measured(0.8, 0, 0.01)})
    scores = {name: score(0.8) for name in gates} | {"code_length": score(0.9)}
    models = {name: model.model_copy(update={"scores": scores}) for name, model in a_verdict().models.items()}
    verdict = a_verdict(gates=gates, models=models, comparisons={"gguf": comparison})
    page, _ = make(tmp_path, all_inputs(tmp_path, verdict))
    text = Page(page).text
    assert "0.120 bits per byte worse in code length [0.0900, 0.150], margin 0.05" in text and "5 more measures" in text


def test_noise_of_amounts_is_in_their_differences(tmp_path: Path) -> None:
    """Nearly every item of an amount differs a little, so the share of those that do says nothing."""
    verdict = a_verdict()
    models = {
        name: model.model_copy(
            update={"scores": model.scores | {"code_length": score(0.9, 48 if name == "gguf" else 240)}}
        )
        for name, model in verdict.models.items()
    }
    floor = NoiseFloor(model="tuned again", n=240, difference=-0.03, flip_rate=0.9)

    def text(difference: float) -> str:
        found = compared(0.0, measures={"code_length": measured(0.9, difference, 0.03, flip_rate=0.2)})
        place = tmp_path / f"{difference}"
        changed = a_verdict(
            gates=GATES | {"code_length": CODE_LENGTH},
            models=models,
            comparisons={"gguf": found},
            noise={"code_length": [floor]},
        )
        return Page(make(place, all_inputs(place, changed))[0]).text

    far, near = text(-0.12), text(0.02)
    assert "within noise" not in far and "within noise" in near
    assert "0.0300 bits per byte tuned again" in far and "+0.0200 within noise" in near
    assert "n 48" in far and "n 240" not in far, "only where it is not the baseline's number"


def test_harmed_and_thin_slices_are_marked_besides_their_color(tmp_path: Path) -> None:
    slices = [in_slice("language", "et", "fact", -0.21, n=34), in_slice("language", "en", "fact", 0.01, n=150)]
    page, _ = make(tmp_path, all_inputs(tmp_path, a_verdict(comparisons={"gguf": compared(0.0, slices=slices)})))
    harmed = re.search(r'<td class="cell harmed[^>]*>(.*?)</td>', page)
    assert harmed and "▼" in harmed[1] and "21.0" in harmed[1]
    thin = a_verdict(comparisons={"gguf": compared(0.0, slices=[in_slice("language", "fi", "fact", 0.0, n=8)])})
    page, _ = make(tmp_path / "2", all_inputs(tmp_path / "2", thin))
    assert re.search(r'<td class="cell thin[^>]*><span class="hidden">too few items', page)


def test_failures_are_told(tmp_path: Path) -> None:
    models = a_verdict().models
    models |= {"int4": models["int4"].model_copy(update={"scores": {}, "failures": {"speed": "out of memory"}})}
    page, data = make(tmp_path, all_inputs(tmp_path, a_verdict(models=models)))
    assert "int4 in speed: out of memory" in Page(page).text


CHANGES = {
    "title": Change("Another heading"),
    "max_flips": Change(3),
    "theme": Change("dark"),
    "command": Change("make run"),
    "base_model": Change("someone/a-model"),
    "licenses.model": Change("Apache-2.0"),
    "licenses.data": Change("CC-BY-4.0"),
    "licenses.teacher": Change("terms of the teacher's maker"),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    yield Case(folder, all_inputs(folder / "inputs", a_verdict()))
