"""The files besides the page: performance log, bill of materials, cards, the packed model, and where it all came from."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from verdict_samples import (
    EVIL,
    GATES,
    a_verdict,
    all_inputs,
    an_artifact,
    compared,
    digest_of,
    make,
    measures,
    only_verdict,
    shipping,
    write,
)

from tasks.report.content.provenance import ancestors, changes_since, parent_of, read_origin, read_origins
from tasks.report.documents.bill_of_materials import library_license, license_entry
from tasks.report.documents.pack import folder_name
from tasks.report.documents.performance import PerformanceLog
from tasks.report.words.markdown import code, escape, table
from tasks.shared.errors import DataError
from tasks.shared.formats.verdict import Verdict
from tasks.shared.technique import Artifact, Inputs, Kind
from tests.project_files import matching


def out_of(root: Path, verdict: Verdict, **settings: Any) -> Path:
    make(root, all_inputs(root / "in", verdict), **settings)
    return root / "out"


def log_of(out: Path) -> PerformanceLog:
    return PerformanceLog.model_validate_json((out / "performance.json").read_bytes())


def test_log_says_what_was_modified_and_what_that_changed(tmp_path: Path) -> None:
    verdict = a_verdict()
    log = log_of(out_of(tmp_path, verdict, command="make run", licenses={"data": "CC-BY-4.0"}))
    assert (log.date, log.decision, log.baseline.name) == ("2026-11-26T08:08:30+00:00", "do not ship", "tuned")
    gguf = next(found for found in log.candidates if found.name == "gguf")
    assert [(c.step, c.technique) for c in gguf.changes] == [
        ("slim", "prune/depth"),
        ("student", "distill/sft"),
        ("int4", "quantize/gptq"),
        ("gguf", "export/gguf"),
    ]
    assert gguf.traced and gguf.changes[2].settings == {"group_size": 32, "observer.kind": "mse"}
    for before, after in zip(gguf.changes, gguf.changes[1:], strict=False):
        assert after.inputs[before.step] == before.after, "digest by digest, from the baseline on"
    assert gguf.changes[0].inputs["tuned"] == log.baseline.digest == digest_of("tuned")
    assert gguf.measures == verdict.comparisons["gguf"].measures and gguf.slices == verdict.comparisons["gguf"].slices
    assert log.licenses.data == "CC-BY-4.0" and log.data[0].card["card.json"]["counts"]["test"]["faq"] == 120
    assert log.evidence["verdict"] == digest_of("verdict") and set(log.evidence) >= {"corpus", "answers", "gguf"}
    assert any("smallest margin that can be decided is 6.1 points" in line for line in log.limits)
    assert any("language fi" in line for line in log.limits) and verdict.notes[0] in log.limits


def test_log_without_manifests_says_that_it_is_not_traced(tmp_path: Path) -> None:
    make(tmp_path, only_verdict(tmp_path, a_verdict()))
    log = log_of(tmp_path / "out")
    assert log.date == "" and not any(found.traced or found.changes for found in log.candidates)
    text = (tmp_path / "out" / "performance.md").read_text("utf-8")
    assert "could not be traced back" in text and "date: not stated" in text


def test_markdown_tables_are_whole_whatever_the_words(tmp_path: Path) -> None:
    evil = f"a | b\n{EVIL} `x` *y* [z](http://evil.example)"
    verdict = a_verdict(notes=[evil], comparisons={"gguf": compared(-0.2, reasons=[evil, "b"])})
    out = out_of(tmp_path, verdict)
    for file in matching("**/*.md", root=out):
        text = file.read_text("utf-8")
        assert "<script" not in text and "<img" not in text and not re.search(r"(?<!\\)\]\(http", text), file
        widths = {len(line.replace("\\|", "").split("|")) for line in text.splitlines() if line.startswith("| gguf ")}
        assert len(widths) <= 2, file
    assert escape("a|b_c\n<d>") == r"a\|b\_c &lt;d&gt;"
    assert code("") == "" and code("a`b") == "`` a`b ``" and code("a|b") == r"`a\|b`"
    assert table(["a"], []) == "None." and table(["a"], [[code("x_y")]]).endswith("| `x_y` |")


def test_bill_of_materials(tmp_path: Path) -> None:
    out = out_of(tmp_path, shipping(), licenses={"model": "Apache-2.0", "data": "my own terms", "teacher": "MIT"})
    bill = json.loads((out / "materials.json").read_text("utf-8"))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["name"] == "gguf" and bill["metadata"]["timestamp"].startswith("2026-11-26")
    by_ref = {item["bom-ref"]: item for item in bill["components"]}
    assert len(by_ref) == len(bill["components"])
    assert by_ref["model:teacher"]["licenses"] == [{"license": {"name": "MIT; Apache-2.0"}}], "as teacher and as source"
    assert by_ref["model:gguf"]["licenses"] == [{"expression": "Apache-2.0"}]
    assert by_ref["data:corpus"]["licenses"] == [{"license": {"name": "my own terms"}}]
    assert by_ref["library:torch@2.13.0"]["purl"] == "pkg:pypi/torch@2.13.0"
    links = {link["ref"]: link["dependsOn"] for link in bill["dependencies"]}
    assert links["subject:gguf"] == ["model:gguf"] and links["model:gguf"] == ["data:corpus", "model:int4"]
    assert {ref for refs in links.values() for ref in refs} <= set(by_ref)
    digests = {p["value"] for p in by_ref["model:gguf"]["properties"] if p["name"] == "stillroom:digest"}
    assert digests == {digest_of("gguf")}
    assert "| corpus | data | my own terms |" in (out / "materials.md").read_text("utf-8")


def test_a_license_is_that_of_the_baselines_source_only(tmp_path: Path) -> None:
    inputs = all_inputs(tmp_path / "in", a_verdict())
    others = {artifact.name: artifact for port in inputs.ports.values() for artifact in port}
    foreign = an_artifact(
        tmp_path / "in",
        "foreign",
        Kind.MODEL,
        {},
        others,
        technique="tasks.quantize.rtn.Rtn",
        inputs={"model": ["models.other"]},
    )
    models = a_verdict().models | {"foreign": measures("candidate", 20, 90, 0.8)}
    verdict = a_verdict(models=models, comparisons={"gguf": compared(-0.07), "foreign": compared(-0.07)})
    (inputs.one("verdict").path / "verdict.json").unlink()
    (inputs.one("verdict").path / "verdict.json").write_text(verdict.model_dump_json(), encoding="utf-8")
    given = Inputs({**inputs.ports, "models": (*inputs.many("models"), foreign)})
    make(tmp_path, given, licenses={"model": "Apache-2.0"})
    out = tmp_path / "out"
    found = {
        item["bom-ref"]: item.get("licenses")
        for item in json.loads((out / "materials.json").read_text("utf-8"))["components"]
    }
    stated = [{"expression": "Apache-2.0"}]
    assert (found["model:teacher"], found["model:tuned"], found["model:gguf"]) == (stated, stated, stated)
    assert (found["model:other"], found["model:foreign"]) == (None, None)
    cards = {name: ModelCard.load(out / "models" / name / "README.md") for name in ("gguf", "foreign")}
    assert (cards["gguf"].data.license, cards["foreign"].data.license) == ("apache-2.0", None)
    assert "source model: not stated" in cards["foreign"].text


def test_licenses_of_libraries() -> None:
    from importlib.metadata import version

    assert library_license("pydantic", version("pydantic")) == "MIT"
    assert library_license("pydantic", "0.1") == library_license("no-such-package", "1") == "not stated"
    assert license_entry("apache-2.0") == {"expression": "Apache-2.0"}
    assert license_entry("BSD License") == {"license": {"name": "BSD License"}}


def test_shipped_model_is_packed_by_links_with_its_card(tmp_path: Path) -> None:
    out = out_of(tmp_path, shipping(), base_model="someone/a-model", licenses={"model": "Apache-2.0"})
    source = tmp_path / "in" / "gguf" / "out" / "model.gguf"
    assert source.samefile(out / "model" / "model.gguf")
    card = ModelCard.load(out / "model" / "README.md")
    assert card.data.license == "apache-2.0" and card.data.base_model == "someone/a-model"
    assert "not-cleared-to-ship" not in card.data.tags and card.text.count("Cleared to ship") == 1
    values = {result.metric_type: result.metric_value for result in card.data.eval_results or []}
    assert values["fact"] == shipping().models["gguf"].scores["fact"].value
    assert digest_of("gguf") in card.text and not (out / "models").exists()


def test_only_what_was_measured_on_the_corpus_is_said_to_be(tmp_path: Path) -> None:
    gates = GATES | {"intent": GATES["intent"].model_copy(update={"step": "benchmarks"})}
    out = out_of(tmp_path, shipping().model_copy(update={"gates": gates}))
    found = {
        result.metric_type: result for result in ModelCard.load(out / "model" / "README.md").data.eval_results or []
    }
    assert (found["fact"].dataset_name, found["fact"].dataset_revision) == ("test split of corpus", digest_of("corpus"))
    other = found["intent"]
    assert (other.dataset_name, other.dataset_revision, other.dataset_split) == (
        "items of the step benchmarks",
        None,
        None,
    )


def test_a_gguf_file_given_as_a_source_is_described_as_one(tmp_path: Path) -> None:
    models = a_verdict().models
    models |= {"gguf": models["gguf"].model_copy(update={"kind": "model", "speed_engine": "llama.cpp (timed)"})}
    make(tmp_path, only_verdict(tmp_path, a_verdict(models=models)))
    card = ModelCard.load(tmp_path / "out" / "models" / "gguf" / "README.md")
    assert card.data.library_name == "gguf" and "safetensors" not in card.text and "llama-server" in card.text
    assert "in llama.cpp (timed)." in card.text and "2.8x" in card.text


def test_a_source_as_baseline_is_traced(tmp_path: Path) -> None:
    verdict = a_verdict()
    models = {
        ("teacher" if name == "tuned" else name): model for name, model in verdict.models.items() if name != "teacher"
    }
    models["slim"] = models["slim"].model_copy(update={"made_from": ""})
    log = log_of(out_of(tmp_path, a_verdict(baseline="teacher", reference=None, models=models)))
    assert all(found.traced for found in log.candidates), "manifests call it models.teacher"
    assert [change.step for change in log.candidates[0].changes] == ["tuned", "slim"]
    data = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert next(row for row in data["models"] if row["name"] == "slim")["parent"] == "teacher"


def test_nothing_is_packed_without_a_ship(tmp_path: Path) -> None:
    out = out_of(tmp_path, a_verdict(), licenses={"model": "Some License 1.0"})
    assert not (out / "model").exists()
    assert {folder.name for folder in (out / "models").iterdir()} == {"slim", "student", "int4", "gguf"}
    for file in matching("models/*/README.md", root=out):
        card = ModelCard.load(file)
        assert card.text.strip().splitlines()[2].startswith("> **Not cleared to ship (do not ship).**")
        assert "not-cleared-to-ship" in card.data.tags
        assert (card.data.license, card.data.license_name) == ("other", "Some License 1.0")


def test_a_shipped_model_that_was_not_given_is_told(tmp_path: Path) -> None:
    page, data = make(tmp_path, only_verdict(tmp_path, shipping()))
    assert (
        data["packed"] == ""
        and "it was not among this step" in page
        and (tmp_path / "out" / "performance.json").is_file()
    )
    assert (tmp_path / "out" / "models" / "gguf" / "README.md").is_file()


def test_a_users_own_model_stays_where_it_is(tmp_path: Path) -> None:
    own = write(tmp_path / "own", {"model.gguf": "weights"}) / "model.gguf"
    given = only_verdict(tmp_path, shipping()).ports | {"models": (Artifact("gguf", Kind.MODEL, own, "digest"),)}
    _, data = make(tmp_path, Inputs(given))
    assert data["packed"] == "" and not (tmp_path / "out" / "model").exists()
    assert own.stat().st_nlink == 1 and "digest" in (tmp_path / "out" / "models" / "gguf" / "README.md").read_text()


def test_folder_names_are_plain_and_apart() -> None:
    taken: set[str] = set()
    names = [folder_name(name, taken) for name in ("a b", "a/b", "../..", "<b>", "A-b", "ok_1")]
    assert names == ["a-b", "a-b-2", "model", "b", "A-b-3", "ok_1"]


def test_lineage_follows_digests(tmp_path: Path) -> None:
    inputs = all_inputs(tmp_path, a_verdict())
    origins = read_origins(inputs.many("models"))
    assert ancestors(origins, "gguf") == ["int4", "student", "slim", "tuned", "models.teacher"]
    assert parent_of(origins, "tuned") == "models.teacher", "the port `model` comes before others"
    assert [origin.name for origin in changes_since(origins, "slim", "gguf")] == ["student", "int4", "gguf"]
    other = origins["int4"].model_copy(update={"digest": "another one"})
    assert parent_of(origins | {"int4": other}, "gguf") == "", "the name alone does not make it the same model"


def test_only_a_steps_own_manifest_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", {"config.json": {}})
    (tmp_path / "manifest.json").write_text('{"name": "of another program"}')
    origin = read_origin(Artifact("mine", Kind.MODEL, folder, "d"))
    assert origin.manifest is None and origin.digest == "d"
    out = write(tmp_path / "out", {})
    with pytest.raises(DataError, match=r"manifest\.json: step"):
        read_origin(Artifact("mine", Kind.MODEL, out))


def test_measured_digests_and_parents_come_before_manifests(tmp_path: Path) -> None:
    models = a_verdict().models
    models |= {"gguf": models["gguf"].model_copy(update={"digest": "measured", "made_from": "student"})}
    _, data = make(tmp_path, all_inputs(tmp_path, a_verdict(models=models)))
    row = next(row for row in data["models"] if row["name"] == "gguf")
    assert (row["digest"], row["parent"], row["technique"]) == ("measured", "student", "export/gguf")
