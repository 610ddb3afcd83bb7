"""The evidence page, and a sweep's page, in a browser: nothing sticks out at a phone's width, filters filter, it prints.

STILLROOM_SCREENSHOTS names a folder that keeps the pictures.  Needs chromium (Debian: apt install chromium).
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows.sweeps.page import render
from flows.sweeps.results import Job, Sweep
from tasks.shared.errors import DataError
from tests.verdict_samples import CODE_LENGTH, GATES, a_verdict, all_inputs, compared, flip, make, measured, score

BROWSER = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no chromium; Debian: apt install chromium"),
]
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--allow-file-access-from-files",
    "--virtual-time-budget=5000",
)
WIDTHS = {"phone": 390, "workspace": 1280}
THEMES = ("light", "dark")
PROBE = """<!doctype html><iframe id="page" src="report.html" style="width:WIDTHpx;height:900px;border:0"></iframe><pre id="found"></pre>
<script>
const frame = document.getElementById("page");
frame.onload = () => {
  const page = frame.contentDocument, wide = page.documentElement.clientWidth;
  const inside = node => node.closest(".scroll, pre, .hidden, .skip") !== null;
  const out = [...page.querySelectorAll("main *, header *")].filter(
    node => !(node instanceof frame.contentWindow.SVGElement) && !inside(node) && node.getBoundingClientRect().right > wide + 1);
  const shown = () => [...page.querySelectorAll(".flip")].filter(node => node.getClientRects().length).length;
  const counts = {};
  for (const radio of page.querySelectorAll(".filters input")) {
    for (const name of ["candidate", "direction", "measure"]) page.getElementById(name + "-0").checked = true;
    radio.checked = true;
    counts[radio.id] = shown();
  }
  document.getElementById("found").textContent = JSON.stringify({
    scroll: page.documentElement.scrollWidth, width: wide, out: out.map(node => node.outerHTML.slice(0, 90)), counts});
};
</script>"""


@dataclass(frozen=True)
class Site:
    """A page on disk, and what it holds."""

    folder: Path
    data: Mapping[str, Any]
    pictures: Path

    def browse(self, *arguments: str) -> str:
        profile = self.folder / f"profile-{len(list(self.folder.iterdir()))}"
        command = [str(BROWSER), *FLAGS, f"--user-data-dir={profile}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def probe(self, width: int) -> dict[str, Any]:
        """What a script beside the page finds in it at this width."""
        file = self.folder / f"probe-{width}.html"
        file.write_text(PROBE.replace("WIDTH", str(width)), "utf-8")
        dom = self.browse("--window-size=1400,1000", "--dump-dom", file.as_uri())
        found = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
        assert found and found[1], dom[-500:]
        text = found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        return dict(json.loads(text))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    base = tmp_path_factory.mktemp("report")
    page, data = make(base, all_inputs(base / "in", crowded()), title="Support bot, compressed", max_flips=99)
    folder = base / "site"
    folder.mkdir()
    (folder / "report.html").write_text(page, "utf-8")
    for theme in THEMES:
        (folder / f"{theme}.html").write_text(page.replace('data-theme="auto"', f'data-theme="{theme}"'), "utf-8")
    pictures = Path(os.environ.get("STILLROOM_SCREENSHOTS") or base / "pictures")
    pictures.mkdir(parents=True, exist_ok=True)
    return Site(folder, data, pictures)


def crowded() -> Any:
    """Six candidates, one with a long name, three decisions, ten measures of two units, many slices, long answers."""
    usual = a_verdict()
    gates = GATES | {f"skill_{i}": GATES["fact"].model_copy(update={"step": "regression"}) for i in range(5)}
    gates |= {"code_length": CODE_LENGTH}
    longer = measured(1.02, -0.02, 0.01, retention=None, retention_low=None, retention_high=None)
    names = {
        "slim": -0.79,
        "student": -0.01,
        "int4": -0.04,
        "gguf": -0.012,
        "a_candidate_of_a_rather_long_name": -0.1,
        "w8": -0.02,
    }
    comparisons = {name: compared(loss) for name, loss in names.items()}
    comparisons = {
        name: found.model_copy(update={"measures": found.measures | {"code_length": longer}})
        for name, found in comparisons.items()
    }
    models = {name: usual.models.get(name, usual.models["int4"]) for name in ("tuned", *names, "teacher")}
    models = {
        name: model.model_copy(
            update={"scores": model.scores | {gate: score(0.7) for gate in gates if gate not in GATES}}
        )
        for name, model in models.items()
    }
    flips = [flip(name, i, "to_right" if i % 4 == 0 else "to_wrong") for name in names for i in range(12)]
    flips.append(flip("gguf", 77, question="x" * 300, candidate_answer="long " * 300, baseline_answer="y" * 400))
    shown = {"decision": "ship", "shipped": "gguf", "gates": gates}
    return a_verdict(models=models, comparisons=comparisons, flips=flips, **shown)


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_nothing_sticks_out(site: Site, width: int) -> None:
    found = site.probe(width)
    assert found["width"] == width and found["scroll"] == width and found["out"] == []


def test_of_a_sweeps_page_nothing_sticks_out(tmp_path: Path) -> None:
    long = [f"+steps.a_step_of_a_rather_long_name.layers=[{number},11,12,13,14,15,16,17,18,19]" for number in range(6)]
    jobs = [Job(["+recipe=trial", own], verdict=crowded(), judge="verdict") for own in long]
    jobs[3] = Job(["+recipe=trial", long[3]], error=DataError("x" * 200, "not there", "y"))
    (tmp_path / "report.html").write_text(render(Sweep("trial", jobs), tmp_path), "utf-8")
    site = Site(tmp_path, {}, tmp_path)
    for width in WIDTHS.values():
        found = site.probe(width)
        assert found["width"] == width and found["scroll"] == width and found["out"] == []


def test_filters_show_what_they_say(site: Site) -> None:
    counts = site.probe(WIDTHS["workspace"])["counts"]
    flips = [shown for group in site.data["flips"] for shown in group["shown"]]
    assert counts["candidate-0"] == counts["direction-0"] == counts["measure-0"] == len(flips)
    for number, group in enumerate(site.data["flips"], 1):
        assert counts[f"candidate-{number}"] == len(group["shown"])
    for number, measure in enumerate(site.data["gates"], 1):
        assert counts[f"measure-{number}"] == sum(found["measure"] == measure for found in flips)
    for number, direction in enumerate(("to_wrong", "to_right"), 1):
        assert counts[f"direction-{number}"] == sum(found["direction"] == direction for found in flips)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", WIDTHS)
def test_pictures_at_two_widths_in_two_themes(site: Site, name: str, theme: str) -> None:
    picture = site.pictures / f"report-{name}-{theme}.png"
    height = 24_000 if name == "phone" else 13_000
    site.browse(
        f"--window-size={WIDTHS[name]},{height}",
        f"--screenshot={picture}",
        (site.folder / f"{theme}.html").as_uri(),
    )
    assert picture.stat().st_size > 100_000, "the page is not blank"


def test_it_prints(site: Site) -> None:
    file = site.pictures / "report.pdf"
    site.browse("--no-pdf-header-footer", f"--print-to-pdf={file}", (site.folder / "report.html").as_uri())
    pages = len(re.findall(rb"/Type\s*/Page\b", file.read_bytes()))
    assert 5 <= pages <= 40
