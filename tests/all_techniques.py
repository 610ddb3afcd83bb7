"""Run every technique there is on small inputs: python -m tests.all_techniques INPUTS OUTPUTS prints {option: fingerprints}.

Inputs are chosen by the kinds of a technique's ports, so a new technique is run too, with its default settings unless some
stand here.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from flows.plan import STAGES, find_technique
from tasks.shared.gguf import write_gguf
from tasks.shared.keys import PROJECT
from tasks.shared.rows import read_rows, write_rows
from tasks.shared.technique import Artifact, Inputs, Kind, Port, StepRun
from tests.outputs import fingerprints
from tests.tiny_llama import build_model, save_tiny
from tests.trial_recipe import KEY, teacher_server
from tests.verdict_samples import all_inputs, shipping

OPTIONS = sorted(file for stage in STAGES for file in (PROJECT / "conf" / stage).glob("*.yaml"))
SMALL: dict[str, dict[str, Any]] = {
    "curate/support": {
        "articles": 2, "train_size": 48, "calibration_size": 4, "test_size": 12, "min_train_phrasings": 2,
        "grounded_rate": 0.0, "held_out_share": 0.0,
    },
    "traces/openai": {"model": "fake", "api_key_env": "TRIAL_KEY"},
    "distill/sft": {"epochs": 2, "max_tokens": 2048},
    "export/gguf": {"prompts": 2, "min_top1": 0.0, "max_kl": 100.0},
    "evaluate/paired": {"limit": 6, "context": 4096, "max_new_tokens": 4, "perplexity_rows": 2, "speed_tokens": 4, "speed_repeats": 1},
}  # fmt: skip
WITH_OPTIONAL = {"export/gguf"}
"""Techniques whose optional inputs are given as well."""


def prepare(folder: Path) -> None:
    """One artifact of every kind below `folder`, by the kind's name."""
    made = folder / Kind.CORPUS
    made.mkdir(parents=True)
    technique = find_technique("test", "tasks.curate.support.Support")(**SMALL["curate/support"])
    technique(Inputs({}), made, StepRun("corpus", 0, folder))
    (folder / Kind.TRACES).mkdir()
    write_rows(folder / Kind.TRACES / "train.jsonl", read_rows(made / "train.jsonl"))
    save_tiny(folder / Kind.MODEL, build_model(max_position_embeddings=4096))
    (folder / Kind.ENGINE).mkdir()
    write_gguf(folder / Kind.MODEL, folder / Kind.ENGINE / "model.gguf", "q8_0")
    all_inputs(folder / "report", shipping())
    (folder / "report" / "verdict").rename(folder / Kind.VERDICT)


def inputs_of(folder: Path, ports: Mapping[str, Port], optional: bool) -> Inputs:
    """An artifact for every port; ports that take many get one of each kind."""
    found = {}
    for name, port in ports.items():
        kinds = port.kinds if port.many else port.kinds[:1]
        if not port.optional or optional:
            found[name] = tuple(Artifact(f"{name}_{kind}", kind, folder / kind) for kind in kinds)
    return Inputs(found)


def settings_of(option: str, folder: Path, url: str) -> dict[str, Any]:
    """Small settings of a technique."""
    given = dict(SMALL.get(option, {}))
    if option == "traces/openai":
        given["base_url"] = url
    if option == "curate/jsonl":
        given |= {split: str(folder / Kind.CORPUS / f"{split}.jsonl") for split in ("train", "calibration", "test")}
    return given


def main(folder: Path, outputs: Path) -> None:
    """Run them all and print what they wrote."""
    os.environ["TRIAL_KEY"] = KEY
    if not folder.exists():
        prepare(folder)
    found = {}
    with teacher_server() as url:
        for file in OPTIONS:
            option = f"{file.parent.name}/{file.stem}"
            technique = find_technique("test", yaml.safe_load(file.read_text("utf-8"))["_target_"])
            out, scratch = outputs / option / "out", outputs / option / "scratch"
            out.mkdir(parents=True)
            scratch.mkdir()
            inputs = inputs_of(folder, technique.ports, option in WITH_OPTIONAL)
            technique(**settings_of(option, folder, url))(inputs, out, StepRun("step", 3, scratch))
            found[option] = fingerprints(out)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
