"""Evidence pack of a verdict: page, data, performance log, bill of materials, model cards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.report.content.cards import as_blocks, brief, read_card
from tasks.report.content.curves import read_influence, read_loss
from tasks.report.content.low_rank import rank_notes
from tasks.report.content.masks import mask_notes
from tasks.report.content.provenance import read_origins
from tasks.report.content.report import Card, Licenses, Pruning, Report, Reproduce, Training, from_verdict
from tasks.report.content.shared_layers import sharing_notes
from tasks.report.documents.pack import PACKED, pack_model, write_cards, write_logs
from tasks.report.figures.all_figures import all_figures
from tasks.report.figures.drawing import Figure
from tasks.report.figures.standalone import file_name, svg_file
from tasks.report.page.render import render
from tasks.shared.formats.verdict import Verdict, read_verdict
from tasks.shared.technique import WEIGHTS, Artifact, Inputs, Kind, Metrics, Port, Spec, StepRun


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Html:
    """Write the evidence of one verdict, with the digest of each artifact.

    report.html: the page; it needs no network, script or other file.
    report.json: the data of the page.
    figures/<name>.svg: its plots, each for itself.
    performance.json and .md: the modifications and their effects.
    materials.json (CycloneDX) and .md: the bill of materials.
    models/<name>/README.md: a model card for each candidate.
    model/: the shipped model with its card, if a step of the recipe made it.
    """

    title: Annotated[str, Field(min_length=1)] = "Compression report"
    """Heading of the page."""
    max_flips: Annotated[int, Field(ge=0)] = 60
    """Most changed answers to show, taken in turn from each candidate and direction; items.jsonl of the verdict has all of them."""
    theme: Literal["auto", "light", "dark"] = "auto"
    """Colors: the reader's system setting (auto), or always light or dark.  Print is always light."""
    command: str = ""
    """Command that reproduces this report; shown if set."""
    base_model: str = ""
    """Hub id or name of the recipe's source model, for the cards."""
    licenses: Licenses = Field(default_factory=Licenses)
    """Licenses and terms, as far as known."""

    spec: ClassVar[Spec] = Spec(
        summary="The evidence pack: self-contained page, performance log, bill of materials, model cards, the shipped model",
        ports={
            "verdict": Port((Kind.VERDICT,)),
            "models": Port((Kind.MODEL, Kind.ENGINE), many=True, optional=True, wire="inputs"),
            "scores": Port((Kind.SCORES,), many=True, optional=True, wire="inputs"),
            "corpus": Port((Kind.CORPUS,), optional=True, wire="inputs"),
            "traces": Port((Kind.TRACES,), optional=True, wire="inputs"),
        },
        produces=Kind.REPORT,
        libraries=("jinja2", "markupsafe", "pydantic", "huggingface-hub", "packaging"),
    )

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write all files of the evidence pack.

        Raises DataError for a broken verdict, manifest, card or curve.
        """
        verdict = read_verdict(inputs.one("verdict").path / "verdict.json")
        report = self._gather(verdict, inputs, run.seed)
        (out / "report.json").write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
        figures = all_figures(report)
        page = render(report, figures, self.theme)
        (out / "report.html").write_text(page, encoding="utf-8")
        drawn = [figure for section in figures.values() for figure in section]
        write_figures(drawn, out / "figures", self.theme)
        write_logs(report, out)
        shipped = [model for model in inputs.many("models") if report.packed and model.name == verdict.shipped]
        packed = sum(pack_model(model, out) for model in shipped)
        write_cards(report, out)
        shown = sum(len(group.shown) for group in report.flips)
        return {
            "models": len(report.models),
            "flips_shown": shown,
            "html_bytes": len(page.encode()),
            "figures": len(drawn),
            "packed_bytes": packed,
        }

    def _gather(self, verdict: Verdict, inputs: Inputs, seed: int) -> Report:
        models = inputs.many("models")
        ports = ("corpus", "traces", "models", "scores", "verdict")
        origins = read_origins(artifact for port in ports for artifact in inputs.many(port))
        judged = origins[inputs.one("verdict").name].manifest
        made = {name for name, origin in origins.items() if origin.manifest and origin.kind in WEIGHTS}
        again = Reproduce(
            command=self.command, seed=seed, recipe=judged.recipe if judged else "", made=judged.made if judged else ""
        )
        found = from_verdict(
            verdict,
            origins,
            self.max_flips,
            again,
            title=self.title,
            base_model=self.base_model,
            licenses=self.licenses,
            packed=PACKED if verdict.shipped in made else "",
            training=[Training(model=m.name, points=p) for m in models if (p := read_loss(m.path))],
            pruning=[Pruning(model=m.name, layers=found) for m in models if (found := read_influence(m.path))],
            parity=[card for model in models for card in cards(model, "parity.json")],
            corpus=cards(inputs.get("corpus"), "card.json"),
            traces=cards(inputs.get("traces"), "card.json", "usage.json"),
        )
        notes = [*mask_notes(models), *sharing_notes(models), *rank_notes(origins)]
        return found.model_copy(update={"notes": [*found.notes, *notes]})


def write_figures(figures: Sequence[Figure], folder: Path, theme: str) -> None:
    """Write each of the page's plots to a file of its own."""
    folder.mkdir()
    for figure in figures:
        (folder / file_name(figure)).write_text(svg_file(figure, theme), encoding="utf-8")


def cards(artifact: Artifact | None, *files: str) -> list[Card]:
    """Cards of an artifact: those of the named JSON files that it has."""
    found = [] if artifact is None else [(file, brief(read_card(artifact.path / file))) for file in files]
    name = artifact.name if artifact else ""
    return [Card(title=f"{name}/{file}", blocks=as_blocks(raw), raw=raw) for file, raw in found if raw is not None]
