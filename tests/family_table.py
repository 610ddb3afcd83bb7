"""The table of docs/families.md, from the plan's own answers.

python -m tests.family_table    write it
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from flows.planning.plan import build_plan, find_technique
from tasks.shared.errors import ErrorList
from tasks.shared.model.families import TITLES
from tasks.shared.store.keys import PROJECT
from tasks.shared.technique import Kind
from tests.families import FAMILIES
from tests.tiny_files import write_safetensors

PAGE = PROJECT / "docs" / "families.md"
BEGIN, END = "<!-- families -->", "<!-- /families -->"
STAGES = ("prune", "quantize", "export", "distill", "logits", "evaluate")
LIKE_ANOTHER = frozenset({"divergence", "hallucination", "judge", "lm_eval", "runtime", "paired", "rewind"})
"""Techniques that load models as another one does (evaluate/perplexity and generation; prune/magnitude), or load none."""
CORPUS = "corpus"
SOURCES = {"model": "models.student", "teacher": "models.teacher", "baseline": "models.student", "candidates": "models.teacher"}  # fmt: skip
QUICK = {
    "epochs": 1,
    "validation": 0,
    "batch_size": 4,
    "max_tokens": 256,
    "precision": "float32",
    "learning_rate": 1e-2,
}
GATE = {"prompts": 2, "tokens": 2}
SHORT = {"calibration_rows": 2, "max_tokens": 48}


@dataclass(frozen=True)
class Row:
    """A technique with settings, as a row of the table.

    note: what distinguishes it from another row of the technique.
    """

    option: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def label(self) -> str:
        """Name in the table."""
        return f"{self.option} ({self.note})" if self.note else self.option

    @property
    def target(self) -> str:
        """The technique's class, as its YAML names it."""
        return target_of(self.option)

    @property
    def technique(self) -> Any:
        """The technique with these settings."""
        return find_technique("test", self.target)(**self.settings)

    def ports(self) -> dict[str, str]:
        """Artifact at each port that is needed, and at those of the table above."""
        ports = self.technique.spec.ports
        named = {port: SOURCES[port] for port in ports if port in SOURCES}
        return named | {port: CORPUS for port in ports if port in ("data", "calibration")}


@cache
def target_of(option: str) -> str:
    """The class that an option's YAML names."""
    return str(yaml.safe_load((PROJECT / "conf" / f"{option}.yaml").read_text("utf-8"))["_target_"])


ROWS = (
    Row("prune/budget", {"ratio": 0.2, **SHORT}),
    Row("prune/budget", {"ratio": 0.2, "units": ("layers", "neurons"), **SHORT}, "layers, neurons"),
    Row("prune/budget", {"ratio": 0.2, "units": ("layers",), **SHORT}, "layers"),
    Row("prune/depth", {"layers": (0,), **SHORT}),
    Row("prune/experts", {"ratio": 0.5, **SHORT}),
    Row("prune/flap", {"ratio": 0.5, **SHORT}, "neurons"),
    Row("prune/flap", {"units": "queries", "ratio": 0.5, **SHORT}, "heads"),
    Row("prune/heads", {"unit": "queries", "ratio": 0.5, **SHORT}),
    Row("prune/hidden", {"ratio": 0.5, **SHORT}),
    Row("prune/layer_sharing", {"groups": ((0, 1),)}),
    Row("prune/low_rank", {"ratio": 0.5, "check_rows": 2, **SHORT}),
    Row("prune/vocabulary", {"size": 0}),
    Row("prune/weight_selection", {"layers": 1}, "layers"),
    Row("prune/weight_selection", {"hidden_size": 32, "intermediate_size": 64, "heads": 2, "kv_heads": 1, **SHORT}, "width"),
    Row("prune/magnitude", {"check_rows": 2, "max_tokens": 48}),
    Row("prune/magnitude", {"pattern": "2:4", "check_rows": 2, "max_tokens": 48}, "2:4"),
    Row("prune/wanda", {"check_rows": 2, **SHORT}),
    Row("prune/sparsegpt", {"pattern": "2:4", "check_rows": 2, **SHORT}, "2:4"),
    Row("prune/width", {"ratio": 0.5, **SHORT}),
    Row("quantize/rtn", {"check_rows": 2, "max_tokens": 48}),
    Row("quantize/gptq", {"check_rows": 2, **SHORT}),
    Row("quantize/gptq_levels", {"grid": "q4_0", "check_rows": 2, **SHORT}),
    Row("quantize/autoround", {"check_rows": 2, "iterations": 2, **SHORT}),
    Row("quantize/awq", {"check_rows": 2, "grid": 3, **SHORT}),
    Row("quantize/smoothquant", {"check_rows": 2, **SHORT}),
    Row("quantize/fp8", {"check_rows": 2, **SHORT}),
    Row("quantize/fp8", {"check_rows": 2, "kv_cache": "fp8", **SHORT}, "8-bit cache"),
    Row("quantize/fp4", {"check_rows": 2, "max_tokens": 16}),
    Row("quantize/bitsandbytes", {"check_rows": 2, "max_tokens": 48}, "nf4"),
    Row("quantize/bitsandbytes", {"format": "int8", "check_rows": 2, "max_tokens": 48}, "int8"),
    Row("quantize/cast", {"check_rows": 2}),
    Row("export/gguf", {"scheme": "f16", "embedding": "same", "prompts": 2, "tokens": 2, "max_kl": 1e-4, "min_top1": 0.5}),
    Row("export/mixed_gguf", {**GATE, **SHORT, "sections": 1, "types": ("q5_0", "q8_0"), "bits": 7.0, "max_kl": 1.0, "min_top1": 0.0}),
    Row("export/onnx", {**GATE, "scheme": "float32", "embedding": "float32", "max_kl": 1e-4, "min_top1": 0.5}, "float32"),
    Row("export/onnx", {**GATE, "max_kl": 1.0, "min_top1": 0.0}, "int4"),
    Row("export/openvino", {**GATE, "scheme": "float32", "embedding": "float32", "max_kl": 1e-4, "min_top1": 0.5}, "float32"),
    Row("export/openvino", {**GATE, "max_kl": 1.0, "min_top1": 0.0}, "int4"),
    Row("export/vllm"),
    Row("distill/sft", QUICK),
    Row("distill/sft", QUICK | {"lora": {"rank": 2}, "frozen_layers": 0}, "LoRA"),
    Row("distill/sft", QUICK | {"packing": True, "frozen_layers": 1}, "packed, frozen layers"),
    Row("distill/sft", QUICK | {"qat": {"grid": "int4_symmetric"}}, "rounded layers"),
    Row("distill/cot", QUICK),
    Row("distill/logits", QUICK),
    Row("distill/features", QUICK | {"attention_weight": 1.0}),
    Row("distill/gold", QUICK),
    Row("distill/on_policy", QUICK | {"max_new_tokens": 4}),
    Row("logits/topk", {"k": 8, "temperatures": (1.0, 2.0)}),
    Row("evaluate/perplexity", {"context": 64, "stride": 32, "limit": 2}),
    Row("evaluate/generation", {"limit": 2, "max_new_tokens": 4}),
)  # fmt: skip


def recipe(row: Row, model: Path) -> dict[str, Any]:
    """A recipe of a corpus and this technique, with the model and another one of its family as a teacher."""
    ports = {port: [name] if row.technique.spec.ports[port].many else name for port, name in row.ports().items()}
    return {
        "name": "trial",
        "seed": 0,
        "models": {"student": {"path": str(model)}, "teacher": {"path": str(model)}},
        "steps": {
            CORPUS: {"_target_": "tasks.curate.support.Support"},
            "step": {"_target_": row.target, "inputs": ports, **row.settings},
        },
    }


def with_extras(config: Mapping[str, Any]) -> None:
    """Check a recipe as on a machine that has every optional package."""
    with patch("tasks.shared.extras._is_installed", return_value=True):
        build_plan(config)


def plan_answer(row: Row, model: Path) -> str:
    """The plan's messages where it refuses the technique for a model folder; empty if it does not."""
    try:
        with_extras(recipe(row, model))
    except ErrorList as error:
        return "\n".join(map(str, error.errors))
    return ""


def reason(row: Row, name: str) -> str:
    """The plan's reason against the technique for an ordinary model of a family, in a sentence; empty if it takes it."""
    with tempfile.TemporaryDirectory() as folder:
        save_config(Path(folder), name)
        try:
            with_extras(recipe(row, Path(folder)))
        except ErrorList as error:
            (only,) = error.errors
            return f"{only.got.partition(': ')[2]}. Instead: {only.fix}."
    return ""


def save_config(folder: Path, name: str, **changes: Any) -> Path:
    """Write what the plan reads of a model: its configuration, and a file of weights with one tensor."""
    (folder / "config.json").write_text(json.dumps(configuration(name, **changes)), "utf-8")
    write_safetensors(folder / "model.safetensors")
    return folder


def configuration(name: str, **changes: Any) -> dict[str, Any]:
    """A family's configuration as transformers writes it."""
    found: dict[str, Any] = _configuration(name, json.dumps(changes))
    return found


@cache
def _configuration(name: str, changes: str) -> Any:
    model = FAMILIES[name].build(**json.loads(changes))
    return json.loads(model.config.to_json_string(use_diff=False)) | {"architectures": [type(model).__name__]}


def table() -> str:
    """Rows of techniques, columns of families; a cell is "yes" or the number of a reason below."""
    reasons: list[str] = []

    def cell(row: Row, name: str) -> str:
        found = reason(row, name)
        if not found:
            return "yes"
        if found not in reasons:
            reasons.append(found)
        return f"no ({reasons.index(found) + 1})"

    head = ["technique", *TITLES.values()]
    rows = [[row.label, *(cell(row, name) for name in TITLES)] for row in ROWS]
    lines = ["| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows]]
    return "\n".join([*lines, "", *(f"{number}. {found}" for number, found in enumerate(reasons, 1))])


def renewed(text: str) -> str:
    """The page with the table between its markers."""
    before, begin, rest = text.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(END)
    assert begin and end, f"{PAGE.name} lacks {BEGIN} or {END}"
    return f"{before}{begin}{table()}\n{end}{after}"


def techniques() -> set[str]:
    """Techniques of these stages that take a model, by option; those that load it as another row does are left out."""
    options = (file for stage in STAGES for file in sorted((PROJECT / "conf" / stage).glob("*.yaml")))
    found = {f"{file.parent.name}/{file.stem}": file for file in options if file.stem not in LIKE_ANOTHER}
    specs = {option: Row(option).technique.spec for option in found}
    return {
        option
        for option, spec in specs.items()
        if any({Kind.MODEL, Kind.ENGINE} & set(port.kinds) for port in spec.ports.values())
    }


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text("utf-8")), "utf-8")
    sys.stdout.write(f"{PAGE.name} is up to date\n")
