"""Notes on low rank: a reader must not take a rank for savings."""

from pathlib import Path
from typing import Any

from verdict_samples import a_verdict, all_inputs, make

from tasks.report.content.low_rank import rank_notes
from tasks.report.content.provenance import Origin
from tasks.shared.technique import Kind


def origin(name: str, technique: str, source: str, kind: Kind = Kind.MODEL) -> Origin:
    manifest: dict[str, Any] = {
        "step": name, "kind": kind, "key": "k", "technique": technique, "seed": 0, "output": f"sha-{name}",
        "inputs": {"model": {source: f"sha-{source}"}},
    }  # fmt: skip
    return Origin.model_validate({"name": name, "kind": kind, "digest": f"sha-{name}", "manifest": manifest})


def test_a_model_of_low_rank_and_those_made_from_it_are_noted_and_no_other() -> None:
    made = [
        origin("tuned", "tasks.distill.sft.SFT", "models.base"),
        origin("thin", "tasks.prune.low_rank.LowRank", "tuned"),
        origin("file", "tasks.export.gguf.Gguf", "thin", Kind.ENGINE),
        origin("slim", "tasks.prune.depth.Depth", "tuned"),
    ]
    (note,) = rank_notes({each.name: each for each in made})
    assert note.startswith("thin, file: the matrices of the step thin have low rank. Stock loaders take no factors")


def test_the_page_has_the_note(tmp_path: Path) -> None:
    assert not any("low rank" in note for note in make(tmp_path / "without", all_inputs(tmp_path / "a", a_verdict()))[1]["notes"])  # fmt: skip
    inputs = all_inputs(tmp_path / "b", a_verdict())
    (slim,) = (model for model in inputs.many("models") if model.name == "slim")
    manifest = slim.path.parent / "manifest.json"
    text = manifest.read_text("utf-8")
    assert "tasks.prune.depth.Depth" in text
    manifest.write_text(text.replace("tasks.prune.depth.Depth", "tasks.prune.low_rank.LowRank"), "utf-8")
    page, data = make(tmp_path / "with", inputs)
    (note,) = (note for note in data["notes"] if "low rank" in note)
    assert note.startswith("slim, student, int4, gguf: the matrices of the step slim") and note in page
