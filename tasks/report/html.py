"""One page for people: the verdict first, then what it rests on; self-contained, and the same as data in report.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.report import numbers
from tasks.report.cards import as_blocks, brief, read_card
from tasks.report.content import Card, Pruning, Report, Reproduce, Training, from_verdict
from tasks.report.curves import read_influence, read_loss
from tasks.report.wording import reason
from tasks.shared.technique import Artifact, Inputs, Kind, Metrics, Port, StepRun
from tasks.shared.verdict import read_verdict

Theme = Literal["auto", "light", "dark"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Html:
    """Write report.html (no network, no script, no other file) and report.json (everything shown)."""

    title: Annotated[str, Field(min_length=1)] = "Compression report"
    """Heading of the page."""
    max_flips: Annotated[int, Field(ge=0)] = 60
    """Changed answers to show, taken in turn from every candidate and direction; all are in the verdict's items.jsonl."""
    theme: Theme = "auto"
    """Colours: the reader's choice (auto), or always light or dark.  Print is always light."""
    command: str = ""
    """What to type to get this report again; shown when set."""

    ports: ClassVar[Mapping[str, Port]] = {
        "verdict": Port((Kind.VERDICT,)),
        "models": Port((Kind.MODEL, Kind.ENGINE), many=True, optional=True),
        "corpus": Port((Kind.CORPUS,), optional=True),
        "traces": Port((Kind.TRACES,), optional=True),
    }
    produces: ClassVar[Kind] = Kind.REPORT
    libraries: ClassVar[tuple[str, ...]] = ("jinja2", "markupsafe", "pydantic")

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Gather, write report.json, draw report.html.  Raises DataError for a broken verdict, card or curve."""
        verdict = read_verdict(inputs.one("verdict").path / "verdict.json")
        models = inputs.many("models")
        report = from_verdict(
            verdict,
            title=self.title,
            max_flips=self.max_flips,
            reproduce=Reproduce(command=self.command, seed=run.seed),
            training=[Training(model=m.name, points=p) for m in models if (p := read_loss(m.path))],
            pruning=[Pruning(model=m.name, layers=found) for m in models if (found := read_influence(m.path))],
            parity=[card for model in models for card in cards(model, "parity.json")],
            corpus=cards(inputs.get("corpus"), "card.json"),
            traces=cards(inputs.get("traces"), "card.json", "usage.json"),
        )
        (out / "report.json").write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
        page = render(report, self.theme)
        (out / "report.html").write_text(page, encoding="utf-8")
        shown = sum(len(group.shown) for group in report.flips)
        return {"models": len(report.models), "flips_shown": shown, "html_bytes": len(page.encode())}


def cards(artifact: Artifact | None, *files: str) -> list[Card]:
    """Those of the named JSON files that the artifact has, as cards."""
    found = [] if artifact is None else [(file, brief(read_card(artifact.path / file))) for file in files]
    name = artifact.name if artifact else ""
    return [Card(title=f"{name}/{file}", blocks=as_blocks(raw), raw=raw) for file, raw in found if raw is not None]


def render(report: Report, theme: Theme = "auto") -> str:
    """The page.  Names, questions and answers are untrusted: the template escapes all of them."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from tasks.report.figures import all_figures

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = (
        "count",
        "quantity",
        "byte_size",
        "parameters",
        "times",
        "percent",
        "amount",
        "gap",
        "gap_unit",
        "margin",
        "seconds",
        "p_value",
    )
    environment.filters |= {name: getattr(numbers, name) for name in names}
    environment.filters |= {"score_interval": numbers.score_interval, "reason": reason}
    environment.globals |= {"interval": numbers.interval, "missing": numbers.MISSING}
    return environment.get_template("html.jinja").render(report=report, figures=all_figures(report), theme=theme)
