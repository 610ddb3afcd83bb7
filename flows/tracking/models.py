"""Logged models and the model registry; weights stay in the store, identified by digest."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.tracking.address import sqlite_file
from flows.tracking.outbox import Event
from flows.tracking.server import EXISTS, Server, clean
from tasks.shared.store.artifacts import SHORT

log = logging.getLogger("stillroom")
ALIAS = "champion"
COMPARED = "champion.compared"
"""Tag of a model version: its comparison with the champion at that time."""
DECIDED = "champion.decided"
"""Tag of a registered model: time of the verdict that last moved the alias, ms since 1970."""


@dataclass(frozen=True)
class Weights:
    """A model or engine.

    key: key of its step; empty for a source model.
    """

    name: str
    kind: str
    digest: str
    key: str
    path: str


class Models:
    """Models of one experiment on one server."""

    def __init__(self, server: Server, experiment: str) -> None:
        self.server, self.experiment = server, experiment
        self._known: dict[str, Any] = {}

    def find(self, digest: str) -> Any:
        """Find the logged model with this content; None if there is none."""
        if digest and digest not in self._known:
            found = self.server.client.search_logged_models(
                [self.experiment], f"tags.`digest` = '{digest}'", max_results=1
            )
            if not found:
                return None
            self._known[digest] = found[0]
        return self._known.get(digest)

    def ensure(self, weights: Weights, run: str) -> Any:
        """Find the logged model with this content, or log it as made by `run`."""
        if (found := self.find(weights.digest)) is not None:
            return found
        client = self.server.client
        facts = {"digest": weights.digest, "key": weights.key, "path": weights.path}
        made = client.create_logged_model(
            self.experiment,
            name=weights.name.replace(".", "_"),
            source_run_id=run,
            tags=facts,
            params={key: value[:250] for key, value in facts.items()},
            model_type=weights.kind,
        )
        self._known[weights.digest] = client.finalize_logged_model(made.model_id, "READY")
        return self._known[weights.digest]

    def measured(self, digest: str, figures: Mapping[str, float], at: int) -> None:
        """Record figures of a verdict on the logged model, if it is known.

        They are logged in the run that made the model, since MLflow would not link them to the model from the verdict's run.
        """
        from mlflow.entities import Metric

        model = self.find(digest)
        if model is None or not model.source_run_id:
            return
        points = [Metric(clean(key), value, at, 0, model_id=model.model_id) for key, value in figures.items()]
        self.server.log(model.source_run_id, points)

    def promote(self, event: Event, weights: Weights, run: str, late: bool) -> None:
        """Register the shipped model once, and move the alias to it unless a variant made it.

        late: a flush sends the event; a decision that was recorded after it keeps the alias.
        """
        from mlflow.exceptions import MlflowException

        client, name = self.server.client, event.header.experiment
        model = self.ensure(weights, run)
        with self.server.exclusive():
            try:
                client.create_registered_model(name, description=f"models shipped by recipe {name}")
            except MlflowException as error:
                if error.error_code != EXISTS:
                    raise
            known = client.get_registered_model(name)
            found = client.search_model_versions(f"name = '{name}' and tags.`digest` = '{weights.digest}'")
            version = found[0] if found else self._version(event, weights, model)
            if event.content["variant"]:
                return
            if late and int(known.tags.get(DECIDED, 0)) > event.at:
                return
            champion = known.aliases.get(ALIAS)
            if champion is not None and str(champion) != str(version.version):
                note, worse = self._against(event, weights, client.get_model_version(name, str(champion)))
                client.set_model_version_tag(name, str(version.version), COMPARED, note)
                if worse:
                    log.warning("%s may ship, but does not become champion: %s", weights.name, note)
                    return
            if str(champion) != str(version.version):
                client.set_registered_model_alias(name, ALIAS, str(version.version))
            client.set_registered_model_tag(name, DECIDED, str(event.at))

    def _against(self, event: Event, weights: Weights, champion: Any) -> tuple[str, bool]:
        """Compare with the champion; return text, and True if shown to be worse than allowed."""
        from tasks.evaluate.verdict.regression import compare_with_champion

        key = champion.tags.get("verdict.key", "")[:SHORT]
        before = next(self.server.root.glob(f"artifacts/.store/*/{key}/out/verdict.json"), None) if key else None
        if before is None:
            return "not compared with the champion: its verdict is gone", False
        verdict = Path(event.content["folder"]) / "out"
        found = compare_with_champion(verdict, weights.name, before.parent, champion.tags.get("step", ""))
        return found.describe(), bool(found.worse)

    def _version(self, event: Event, weights: Weights, model: Any) -> Any:
        """Create a version of the registered model.

        On a server the source is the logged model, since a server accepts no path outside its own store.  In a database the
        source is the path: MLflow 3.17 resolves a models:/ URI with its global client, which may use another database.
        """
        direct = sqlite_file(self.server.uri) is not None or not self.server.uri.startswith("http")
        return self.server.client.create_model_version(
            event.header.experiment,
            Path(weights.path).as_uri() if direct else model.model_uri,
            run_id=model.source_run_id,
            await_creation_for=0,
            model_id=model.model_id,
            tags={
                "digest": weights.digest,
                "path": weights.path,
                "key": weights.key,
                "step": weights.name,
                "kind": weights.kind,
                "model": model.model_uri,
                "verdict.key": str(event.content["manifest"].get("key", "")),
            },
        )
