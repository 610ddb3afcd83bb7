"""Run one technique in a process that has loaded nothing else: python run_alone.py JOB, a JSON file."""

import json
import sys
from importlib import import_module
from pathlib import Path


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    module, _, name = job["target"].rpartition(".")
    technique = getattr(import_module(module), name)(**job["settings"])
    from tasks.shared.technique import Artifact, Inputs, Kind, StepRun

    ports = {
        port: tuple(Artifact(item[0], Kind(item[1]), Path(item[2])) for item in items)
        for port, items in job["ports"].items()
    }
    out, scratch = Path(job["folder"]) / "out", Path(job["folder"]) / "scratch"
    metrics = technique(Inputs(ports), out, StepRun("step", 0, scratch, 1))
    Path(job["folder"], "metrics.json").write_text(json.dumps(metrics), "utf-8")


if __name__ == "__main__":
    main()
