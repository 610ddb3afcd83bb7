"""Events as MLflow runs: a parent per flow, a child per executed step.

Sending is idempotent: runs are found by the tags stillroom.run and stillroom.event, and times are those of the event, so MLflow
recognizes figures that it already has.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.tracking.events import figures
from flows.tracking.models import Models, Weights
from flows.tracking.outbox import Event, Header
from flows.tracking.server import Server, clean, sending_to
from tasks.shared.store.keys import flatten
from tasks.shared.technique import WEIGHTS, Kind

RUN, EVENT = "stillroom.run", "stillroom.event"
PARENT = "mlflow.parentRunId"
DESCRIPTION = "mlflow.note.content"
"""MLflow's tag of a run's description, at the top of its page."""
SKIPPED = "files.skipped"
PAGES = (
    "report.html",
    "report.json",
    "performance.json",
    "materials.json",
    "verdict.json",
    "scores.json",
    "metrics.json",
    "card.json",
    "usage.json",
    "parity.json",
    "loss.csv",
    "influence.csv",
)
"""Small files of a step's output that are logged as artifacts; weights stay in the store."""
SHOWN = ("report.html", "report.json", "performance.json", "materials.json", "verdict.json")
"""Files that the flow's run shows as well."""


class Runs:
    """Runs on a server, created from events."""

    def __init__(self, uri: str, root: Path) -> None:
        self.server = Server(uri, root)
        self._parents: dict[str, str] = {}
        self._models: dict[str, Models] = {}

    def send(self, event: Event, late: bool) -> str:
        """Record one event; return the id of the flow's run.

        late: a flush sends the event.
        Raises Unreachable or Refused; the next attempt finds the parts that were recorded before.
        """
        with sending_to(self.server):
            parent = self._parent(event.header)
            if event.kind == "start":
                self.server.log(parent, tags=event.content["tags"])
                self.server.client.update_run(parent, name=event.content["name"])
            elif event.kind == "step":
                self._step(event, parent, late)
            else:
                self.server.client.set_terminated(parent, event.content["status"], end_time=event.at)
                self.server.settle()
        return parent

    def abandon(self, header: Header) -> bool:
        """Mark the running runs of a dead flow as killed; return False if there are none.

        Raises NotSent.
        """
        with sending_to(self.server):
            experiment = self.server.experiment(header.experiment)
            mine = f"tags.`{RUN}` = '{header.run}' and attributes.status = 'RUNNING'"
            found = self.server.client.search_runs([experiment], mine)
            for run in found:
                self.server.client.set_terminated(run.info.run_id, "KILLED")
        return bool(found)

    def _parent(self, header: Header) -> str:
        """Find the flow's run, or create it if this server has not received its start."""
        if header.run not in self._parents:
            experiment = self.server.experiment(header.experiment)
            mine = {RUN: header.run, EVENT: "start"}
            run = self.server.find_run([experiment], mine) or self.server.client.create_run(
                experiment, start_time=header.started, tags=mine, run_name=header.experiment
            )
            self._parents[header.run] = run.info.run_id
        return self._parents[header.run]

    def _step(self, event: Event, parent: str, late: bool) -> None:
        content, manifest = event.content, event.content["manifest"]
        maker = self._maker(event)
        # Also for artifacts of `dvc repro`, or of a run that died before it recorded them.
        child = None if maker else self._child(event, parent)
        if child is not None and child.info.status == "FINISHED":
            return  # ending the child run is the last action
        tags: dict[str, str] = {}
        if child is None:
            tags[f"reused.{content['name']}"] = maker
        else:
            self._record(event, child.info.run_id)
        if not self._files(event, child.info.run_id if child else "", parent):
            tags[f"{SKIPPED}.{content['name']}"] = "the artifact was replaced before they could be sent"
        if content["verdict"]:
            tags[DESCRIPTION] = content["verdict"].get("result", "")  # absent from events of earlier versions
        numbers = {f"{content['name']}.{key}": value for key, value in figures(manifest).items()}
        self.server.log(parent, points(numbers, event.at), tags=tags)
        self._show_on_parent(event, parent)
        if content["verdict"]:
            self._verdict(event, child.info.run_id if child else parent, late, measured=child is not None)
        if child is not None:
            self.server.client.set_terminated(child.info.run_id, "FINISHED", end_time=event.at)

    def _child(self, event: Event, parent: str) -> Any:
        """Find or create the step's run."""
        content, manifest = event.content, event.content["manifest"]
        experiment = self.server.experiment(event.header.experiment)
        mine = {RUN: event.header.run, EVENT: event.identity}
        tags = {
            **mine,
            PARENT: parent,
            "stage_key": manifest["key"],
            "step": content["name"],
            "kind": content["kind"],
            "technique": str(manifest.get("technique", "")),
            "output": manifest["output"],
            "made": str(manifest.get("made", "")),
            "folder": content["folder"],
            **content["prefect"],
        }
        started = event.at - int(1000 * float(manifest.get("duration_s", 0)))
        return self.server.find_run([experiment], mine) or self.server.client.create_run(
            experiment, start_time=started, tags=tags, run_name=content["name"]
        )

    def _record(self, event: Event, run: str) -> None:
        """Record settings, figures, curves, inputs and the model of a step."""
        content, manifest = event.content, event.content["manifest"]
        numbers = points(figures(manifest), event.at, content["curve"])
        self.server.log(run, numbers, params=flatten(manifest["settings"]))
        self._inputs(event, run)
        if content["kind"] in WEIGHTS:
            path = str(Path(content["folder"]) / "out")
            weights = Weights(content["name"], content["kind"], manifest["output"], manifest["key"], path)
            self._output(run, self._models_of(event.header).ensure(weights, run).model_id)

    def _show_on_parent(self, event: Event, parent: str) -> None:
        """Show the datasets that a step read, and the model that it made, on the flow's run."""
        if datasets := dataset_inputs(event):
            self.server.client.log_inputs(parent, datasets)  # MLflow ignores those that the run already has
        if event.content["kind"] in WEIGHTS:
            model = self._models_of(event.header).find(event.content["manifest"]["output"])
            if model is not None:  # else another recipe made and logged it
                self._output(parent, model.model_id)

    def _inputs(self, event: Event, run: str) -> None:
        """Log a step's inputs: data as datasets, models as logged models if MLflow knows them."""
        from mlflow.entities import LoggedModelInput

        models, datasets = self._models_of(event.header), dataset_inputs(event)
        known = {model.model_id for item in event.content["models"] if (model := models.find(item["digest"]))}
        fresh = self._new_inputs(run, known)
        if datasets or fresh:
            self.server.client.log_inputs(run, datasets, [LoggedModelInput(one) for one in sorted(fresh)])

    def _new_inputs(self, run: str, known: set[str]) -> set[str]:
        """Return the models that are not yet inputs of the run; MLflow would add duplicates."""
        if not known:
            return set()
        inputs = self.server.client.get_run(run).inputs
        return known - {item.model_id for item in inputs.model_inputs} if inputs else known

    def _output(self, run: str, model: str) -> None:
        from mlflow.entities import LoggedModelOutput

        outputs = self.server.client.get_run(run).outputs
        if not outputs or model not in {item.model_id for item in outputs.model_outputs}:
            self.server.client.log_outputs(run, [LoggedModelOutput(model, 0)])

    def _models_of(self, header: Header) -> Models:
        experiment = self.server.experiment(header.experiment)
        return self._models.setdefault(experiment, Models(self.server, experiment))

    def _maker(self, event: Event) -> str:
        """Id of another run that has recorded the artifact; empty if there is none.

        For a step that this flow executed, only a record of the same execution counts: while the event of a killed flow waits, a
        later flow may find the artifact and record it.
        """
        manifest = event.content["manifest"]
        key = {"stage_key": manifest["key"]}
        if event.content["executed"]:
            if not manifest.get("made"):
                return ""
            key |= {"made": manifest["made"], "output": manifest["output"]}
        own = [self.server.experiment(event.header.experiment)]
        found = self.server.find_run(own, key)
        if found is None:
            every = [item.experiment_id for item in self.server.client.search_experiments()]
            found = self.server.find_run(every, key)
        if found is None or (found.data.tags.get(RUN), found.data.tags.get(EVENT)) == (
            event.header.run,
            event.identity,
        ):
            return ""
        return str(found.info.run_id)

    def _files(self, event: Event, child: str, parent: str) -> bool:
        """Log the artifact's small files; return False if another artifact has replaced it."""
        folder = Path(event.content["folder"])
        if current_output(folder) != event.content["manifest"]["output"]:
            return False
        found = [file for page in PAGES if (file := folder / "out" / page).is_file()]
        for file in [folder / "manifest.json", *found] if child else []:
            self.server.client.log_artifact(child, str(file))
        if child or event.content["kind"] in {Kind.REPORT, Kind.VERDICT}:
            for file in found:
                if file.name in SHOWN:
                    self.server.client.log_artifact(parent, str(file))
        return True

    def _verdict(self, event: Event, run: str, late: bool, measured: bool) -> None:
        """Record figures on the compared models, and register the model that ships."""
        verdict, models = event.content["verdict"], self._models_of(event.header)
        compared = {item["name"]: item for item in event.content["models"]}
        for name, numbers in verdict["figures"].items() if measured else ():
            if name in compared:
                models.measured(compared[name]["digest"], numbers, event.at)
        shipped = compared.get(verdict["shipped"] or "")
        if verdict["decision"] == "ship" and shipped is not None:
            weights = Weights(**{key: shipped[key] for key in ("name", "kind", "digest", "key", "path")})
            models.promote(event, weights, run, late)


def dataset_inputs(event: Event) -> list[Any]:
    """Corpora and traces that a step read, as MLflow's dataset inputs."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    return [
        DatasetInput(
            Dataset(
                item["name"],
                item["digest"][:36],  # MLflow's limit; the tag holds the whole digest
                "local",
                json.dumps({"uri": item["path"]}),
                profile=json.dumps(item["profile"]) if item["profile"] else None,
            ),
            [InputTag("mlflow.data.context", item["port"]), InputTag("digest", item["digest"])],
        )
        for item in event.content["datasets"]
    ]


def points(numbers: Mapping[str, float], at: int, curve: Sequence[Sequence[Any]] = ()) -> list[Any]:
    """Figures and points of curves as MLflow metrics with one timestamp."""
    from mlflow.entities import Metric

    single = [Metric(clean(key), value, at, 0) for key, value in numbers.items()]
    return single + [Metric(clean(name), value, at, step) for name, step, value in curve]


def current_output(folder: Path) -> str:
    """Content digest from the manifest of the present artifact; empty if there is none."""
    try:
        return str(json.loads((folder / "manifest.json").read_text("utf-8"))["output"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
