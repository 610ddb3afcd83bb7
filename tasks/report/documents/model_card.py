"""Model card: a README.md for the weights, with the front matter of the Hugging Face Hub."""

from typing import TYPE_CHECKING

from tasks.report.content.provenance import Origin
from tasks.report.content.report import ModelRow, Report
from tasks.report.documents.bill_of_materials import model_license
from tasks.report.documents.performance import Modified, limits, modified
from tasks.report.documents.performance_page import changes_table
from tasks.report.words.markdown import bullets, code, escape, table
from tasks.shared.technique import DATA, Kind
from tasks.shared.text.numbers import (
    SHARE,
    amount,
    byte_size,
    gap,
    gap_unit,
    interval,
    margin,
    quantity,
    ratio,
    seconds,
    smaller,
)

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

HUB_LICENSES = frozenset(
    {
        *(
            "apache-2.0",
            "mit",
            "bsd-2-clause",
            "bsd-3-clause",
            "gpl-3.0",
            "lgpl-3.0",
            "agpl-3.0",
            "mpl-2.0",
            "openrail",
        ),
        *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0"),
        *("gemma", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3"),
    }
)
"""License identifiers of the Hub; any other license is "other" with its name."""


def model_card(report: Report, row: ModelRow) -> str:
    """Build the card of one candidate.  Raises ValueError if the Hub's reader rejects it."""
    from huggingface_hub import ModelCard

    body = "\n\n".join(part for part in card_parts(report, row) if part)
    card = ModelCard(f"---\n{card_data(report, row).to_yaml()}\n---\n\n{body}\n")
    return str(card)


def card_data(report: Report, row: ModelRow) -> "ModelCardData":
    """Build the front matter of the card."""
    from huggingface_hub import ModelCardData

    license = model_license(report, row.name)
    known = license.lower() in HUB_LICENSES
    return ModelCardData(
        base_model=report.base_model or None,
        license=(license.lower() if known else "other") if license else None,
        license_name=None if known or not license else license,
        library_name=library(row),
        pipeline_tag="text-generation",
        tags=["compressed", *([] if row.decision == "ship" else ["not-cleared-to-ship"])],
        model_name=row.name,
        eval_results=list(eval_results(report, row)) or None,
    )


def eval_results(report: Report, row: ModelRow) -> "list[EvalResult]":
    """Evaluation results, one per measure, with the corpus if the measuring step had one."""
    from huggingface_hub import EvalResult

    results = []
    for name, score in row.measured.scores.items():
        gate = report.gates.get(name)
        step = gate.step if gate else ""
        corpus = corpus_of(report, step)
        results.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=corpus.name if corpus else "own",
                dataset_name=f"test split of {corpus.name}" if corpus else f"items of the step {step or 'evaluate'}",
                dataset_split="test" if corpus else None,
                dataset_revision=corpus.digest or None if corpus else None,
                metric_type=name,
                metric_name=gate.measure.title if gate else name,
                metric_value=round(score.value, 6),
            )
        )
    return results


def corpus_of(report: Report, step: str) -> Origin | None:
    """Corpus that a step measured on, from its manifest; None without a manifest or a corpus."""
    origin = report.origins.get(step)
    inputs = origin.made_from if origin else {}
    known = (report.origins[name] for name in inputs if name in report.origins)
    return next((one for one in known if one.kind is Kind.CORPUS and one.digest in (inputs[one.name], "")), None)


def card_parts(report: Report, row: ModelRow) -> list[str]:
    """Text of the card in parts, which may be empty."""
    found = modified(report, row)
    return [
        f"# {escape(row.name)}",
        banner(row),
        summary(report, row),
        "## How it was made",
        making(report, found),
        "## Quality",
        f"Compared with {escape(report.baseline)} on the same items; positive differences favor this model, with {report.intervals}.",
        table(["measure", "items", "this model", "difference", "margin", "non-inferior"], quality_rows(report, found)),
        harm(report, found),
        "## Speed and memory",
        speed(report, row),
        "## Use",
        use(row),
        "## Data",
        data_line(report),
        "## Limits",
        "This model was tested only on the measures above; any other use needs a test of its own.",
        bullets(limits(report)),
        "## License and terms",
        bullets([f"{name}: {value or 'not stated'}" for name, value in terms(report, row).items()]),
        "## Evidence",
        evidence(report, row),
    ]


def banner(row: ModelRow) -> str:
    """Banner with the decision."""
    if row.decision == "ship":
        return f"**Cleared to ship.** {escape(row.sentence)}"
    return f"> **Not cleared to ship ({escape(row.decision or 'not compared')}).** {escape(row.sentence)}"


def summary(report: Report, row: ModelRow) -> str:
    """Summary of the model: format, size and source."""
    source = f" Its source is {escape(report.base_model)}." if report.base_model else ""
    size = (
        ""
        if row.times_smaller is None or row.role == "baseline"
        else f", {escape(smaller(row.times_smaller, report.baseline))}"
    )
    return f"A compressed causal language model: {escape(row.measured.format)}, {byte_size(row.measured.size_bytes)}{size}.{source}"


def making(report: Report, found: Modified) -> str:
    """Table of the steps from the baseline to this model."""
    if not found.changes:
        return "The steps are unknown: no manifest was given."
    start = (
        f"Starting from {escape(report.baseline)}:"
        if found.traced
        else "Steps with known manifests (the chain to the baseline is incomplete):"
    )
    return f"{start}\n\n{changes_table(found.changes)}"


def quality_rows(report: Report, found: Modified) -> list[list[str]]:
    """Rows of the quality table, one per measure."""
    rows = []
    for name, result in found.measures.items():
        gate = report.gates[name]
        unit = gate.measure.unit
        suffix = "" if unit == SHARE else f" {unit}"
        difference = f"{gap(result.difference, unit)} {gap_unit(unit)} {interval(result.low, result.high, unit)}"
        answer = "watched" if result.margin is None else result.answer
        rows.append(
            [
                gate.measure.title,
                str(result.n),
                amount(result.candidate, unit) + suffix,
                difference,
                margin(result.margin, unit),
                answer,
            ]
        )
    return rows


def harm(report: Report, found: Modified) -> str:
    """Text about slices in which the model is worse."""
    harmed = [part for part in found.slices if part.harmed]
    if not found.slices:
        return "No slices were compared."
    if not harmed:
        return f"No loss was shown in any of the {len(found.slices)} comparisons by slice."
    lines = [
        f"{part.dimension} {part.value}: {gap(part.difference, unit)} {gap_unit(unit)} of {report.gates[part.measure].measure.title} ({part.n} items)"
        for part in harmed
        for unit in [report.gates[part.measure].measure.unit]
    ]
    return f"The model was shown to be worse in {len(harmed)} of {len(found.slices)} comparisons by slice:\n\n{bullets(lines)}"


def speed(report: Report, row: ModelRow) -> str:
    """Table of speed and memory, with the machine."""
    measured = row.measured
    rows = [
        [
            "decode speed, tokens/s",
            quantity(measured.tokens_per_second.median) if measured.tokens_per_second else "not measured",
        ],
        [f"speed relative to {report.baseline}, in the same engine", ratio(measured.speed_ratio)],
        ["time to first token", seconds(measured.time_to_first_token_s)],
        ["peak memory", byte_size(measured.peak_memory_bytes)],
    ]
    machine = report.machine
    place = f"On {machine.cpu}, {machine.cores} cores{', ' + machine.accelerator if machine.accelerator else ''}"
    place += f", in {measured.speed_engine}." if measured.speed_engine else "."
    return f"{table(['figure', 'value'], rows)}\n\n{escape(place)}"


def use(row: ModelRow) -> str:
    """Instructions to load the model."""
    if is_openvino(row):
        return "Load openvino_model.xml in OpenVINO, with token ids of the folder's tokenizer (`AutoTokenizer`); the graph keeps a key-value cache."
    if is_onnx(row):
        return "Load model.onnx in ONNX Runtime, with token ids of the folder's tokenizer (`AutoTokenizer`); the graph reads and extends a key-value cache."
    if is_gguf(row):
        return "Load the .gguf file in llama.cpp (`llama-server -m <file>.gguf`) or in any engine that reads GGUF; the file contains the chat template."
    needed = " with bitsandbytes" if "bitsandbytes" in row.measured.format else ""
    return (
        f'`AutoModelForCausalLM.from_pretrained("<this folder>")` in transformers{needed}; safetensors, no remote code.'
    )


def is_gguf(row: ModelRow) -> bool:
    """Return True for a .gguf file, made by a step or given as a model."""
    graph = is_onnx(row) or is_openvino(row)
    return row.measured.format.startswith("GGUF") or (row.measured.kind == "engine" and not graph)


def is_onnx(row: ModelRow) -> bool:
    """Return True for a folder of `export/onnx`."""
    return row.measured.format.startswith("ONNX")


def is_openvino(row: ModelRow) -> bool:
    """Return True for a folder of `export/openvino`."""
    return row.measured.format.startswith("OpenVINO")


def library(row: ModelRow) -> str:
    """Library that loads the model, by the name that the Hugging Face Hub uses."""
    kinds = {"onnx": is_onnx, "openvino": is_openvino, "gguf": is_gguf}
    return next((name for name, fits in kinds.items() if fits(row)), "transformers")


def data_line(report: Report) -> str:
    """Table of training and test data."""
    rows = [
        [origin.name, str(origin.kind), origin.technique, code(origin.digest[:16])]
        for origin in report.origins.values()
        if origin.kind in DATA
    ]
    return table(["data", "kind", "made by", "digest"], rows) if rows else "Not stated."


def terms(report: Report, row: ModelRow) -> dict[str, str]:
    """Licenses and terms stated in the recipe."""
    return {
        "source model": model_license(report, row.name),
        "data": report.licenses.data,
        "answers of the teacher": report.licenses.teacher,
    }


def evidence(report: Report, row: ModelRow) -> str:
    """Digests that tie the card to the measured model and verdict."""
    lines = {
        "this model": row.digest,
        **{f"{name} (verdict)": o.digest for name, o in report.origins.items() if o.kind is Kind.VERDICT},
    }
    known = "\n".join(f"- {escape(name)}: {code(digest) or 'not known'}" for name, digest in lines.items())
    return f"{known}\n\nAll figures are in performance.json of the evidence pack, all versions and licenses in materials.json."
