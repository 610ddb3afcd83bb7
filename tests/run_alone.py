"""Run techniques, each in a process that has loaded nothing else of the project: python run_alone.py FOLDER...

A folder holds job.json, and gets metrics.json and `opened`, the project's files that the run opened (tests/opened_files).
Large libraries are loaded once, before the processes are forked: they are none of the project's.
"""

import json
import os
import sys
from contextlib import suppress
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

LARGE = ("torch", "transformers", "datasets", "trl", "llmcompressor", "lm_eval.evaluator")


def run(folder: Path) -> None:
    os.environ["STILLROOM_OPENED"] = str(folder / "opened")
    job = json.loads((folder / "job.json").read_text("utf-8"))
    module, _, name = job["target"].rpartition(".")
    technique = getattr(import_module(module), name)(**job["settings"])
    from tasks.shared.technique import Artifact, Compute, Inputs, Kind, StepRun

    ports = {
        port: tuple(Artifact(item[0], Kind(item[1]), Path(item[2]), item[3]) for item in items)
        for port, items in job["ports"].items()
    }
    metrics = technique(
        Inputs(ports), folder / "out", StepRun("step", 0, folder / "scratch", compute=Compute(threads=1))
    )
    (folder / "metrics.json").write_text(json.dumps(metrics), "utf-8")


def main() -> None:
    for library in LARGE:
        with suppress(ImportError):
            import_module(library)
    assert not [name for name in sys.modules if name.partition(".")[0] == "tasks"]
    for folder in map(Path, sys.argv[1:]):
        child = get_context("fork").Process(target=run, args=(folder,))
        child.start()
        child.join()


if __name__ == "__main__":
    main()
