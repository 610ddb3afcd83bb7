"""A recipe to start from, for a file that was looked at."""

import re
from math import ceil
from pathlib import Path
from typing import Any

import yaml

from flows.looking.figures import Lengths
from flows.looking.sample import Sample
from flows.planning.plan import NAME_PATTERN
from tasks.shared.errors import ConfigError
from tasks.shared.files import write_text
from tasks.shared.formats.tasks import Task

MARGIN = 0.05
TOKENS_PER_WORD = 1.6
"""Generous for English, so that a limit from counted words holds in tokens, chat markup included."""
USUAL, MOST, STEP = 512, 2048, 256
"""Default limit of a conversation's tokens in training, the highest that a written recipe sets, and its multiples."""
MEASURES = {
    "label": "label", "labels": "labels", "facts": "fact", "number": "value", "choice": "choice", "json": "json_exact", "call": "call_arguments",
    "text": "rouge_l",
}  # fmt: skip
"""Measures that decide, by type of target."""


def write_recipe(
    file: Path, files: dict[str, str], sample: Sample, lengths: Lengths, settings: dict[str, Any], model: str
) -> str:
    """Write a recipe of at most 16 lines and return its name.

    files: paths of the data by setting of `curate/jsonl`.  settings: of the reader, as given on the command line.
    model: folder of a model with weights, or empty.
    Raises ConfigError if the file exists, or its name cannot be a recipe's.
    """
    name = new_name(file)
    save_recipe(file, recipe_text(name, files, sample, lengths, settings, model))
    return name


def new_name(file: Path) -> str:
    """Return the name of a recipe that is to be written.

    Raises ConfigError if the file exists, or its name cannot be a recipe's.
    """
    name = file.stem
    if file.suffix != ".yaml" or not re.fullmatch(NAME_PATTERN, name) or not isinstance(yaml.safe_load(name), str):
        raise ConfigError(
            "--write",
            str(file),
            "a .yaml file named in lower-case letters, digits and underscores, no word that YAML reads as true, false or null",
            "--write my_conf/recipe/my.yaml",
        )
    if file.exists():
        raise ConfigError("--write", f"{file} exists", "a new file", "delete it, or choose another name")
    return name


def save_recipe(file: Path, text: str) -> None:
    """Write a recipe, and its folder.  Raises ConfigError if that is not possible."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
    except OSError as error:
        raise ConfigError(
            "--write", f"{file} cannot be written: {error.strerror}", "a folder that you may write, with room"
        ) from error


def recipe_text(
    name: str, files: dict[str, str], sample: Sample, lengths: Lengths, settings: dict[str, Any], model: str
) -> str:
    """Text of the recipe: data, fine-tuning, int4, GGUF, answers and a verdict."""
    source = "path" if model else "smollm2_135m"
    models = [f"models: {{base: {flow({'path': str(Path(model).resolve())})}}}"] if model else []
    margins = ", ".join(f"{measure}: {MARGIN}" for measure in deciding_measures(sample))
    lines = [
        "# @package _global_",
        f"# Written by flows.look for {file_names(files)}: a start for your own recipe.",
        "defaults: [",
        f"  /model@models.base: {source}, /curate@steps.corpus: jsonl, /distill@steps.tuned: sft, /quantize@steps.int4: gptq,",
        "  /export@steps.gguf: gguf, /evaluate@steps.answers: generation, /evaluate@steps.verdict: paired, _self_]",
        f"name: {name}",
        *models,
        "steps:",
        f"  corpus: {flow(corpus_settings(files, sample, settings))}",
        f"  tuned: {flow({'epochs': 3, **length_limit(lengths)})}",
        "  int4: {inputs: {model: tuned}, group_size: 32}",
        "  gguf: {inputs: {model: int4}}",
        '  answers: {rounds: {margins: "${steps.verdict.margins}"}}  # stops once the verdict is certain',
        f"  verdict: {{mode: adaptive, inputs: {{baseline: tuned, candidates: [int4, gguf]}}, margins: {{{margins}}}}}",
    ]
    return "\n".join(lines) + "\n"


def corpus_settings(files: dict[str, str], sample: Sample, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of `curate/jsonl` for a file that was looked at; parameters of `write_recipe`."""
    return {**{split: _absolute(path) for split, path in files.items()}, **settings, **_task(sample, settings)}


def deciding_measures(sample: Sample) -> list[str]:
    """Measures that the answer keys allow; ROUGE-L without any."""
    return [measure for kind, measure in MEASURES.items() if _has(sample, kind)] or ["rouge_l"]


def file_names(files: dict[str, str]) -> str:
    """Names of the data files, for a comment."""
    return ", ".join(Path(path.partition("#")[0]).name for path in files.values())


def length_limit(lengths: Lengths) -> dict[str, Any]:
    """Return settings of a training for conversations longer than it takes by default.

    Those longer than MOST are left out.
    """
    longest = max(lengths.whole, default=0) * (1 if lengths.unit == "tokens" else TOKENS_PER_WORD)
    if longest <= USUAL:
        return {}
    needed = STEP * ceil(longest / STEP)
    return {"max_tokens": min(needed, MOST)} | ({"too_long": "drop"} if needed > MOST else {})


def _task(sample: Sample, settings: dict[str, Any]) -> dict[str, Any]:
    """The task that was found, so that the recipe shows it."""
    if "task" in settings or "tasks" in settings or len(sample.reader.tasks) != 1:
        return {}
    task = next(iter(sample.reader.tasks.values()))
    if any(row.source.line == 0 for row in sample.rows[:1]):  # rows of the corpus' schema name their own
        return {}
    given = task.model_dump(include={"type", "layout"}, exclude_defaults=True)
    return {"task": given} if task != Task() else {}


def _has(sample: Sample, kind: str) -> bool:
    return any(target.type == kind for row in sample.rows for target in row.key)


def _absolute(path: str) -> str:
    file, mark, part = path.partition("#") if not Path(path).exists() else (path, "", "")
    return f"{Path(file).expanduser().resolve()}{mark}{part}"


def flow(content: Any) -> str:
    """A mapping as YAML on one line."""
    return yaml.safe_dump(content, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True).strip()
