"""Logged models and the registry.  Weights stay in the store; a digest identifies them."""

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
"""Tag of a registered model: time of the verdict that moved the alias last, ms since 1970."""


@dataclass(frozen=True)
class Weights:
    """A model or engine.  key: of its step, empty for a source."""

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
        """The logged model with this content, or None."""
        if digest and digest not in self._known:
            found = self.server.client.search_logged_models(
                [self.experiment], f"tags.`digest` = '{digest}'", max_results=1
            )
            if not found:
                return None
            self._known[digest] = found[0]
        return self._known.get(digest)

    def ensure(self, weights: Weights, run: str) -> Any:
        """The logged model with this content, made by `run` if there is none yet."""
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

        They are recorded in the run that made the model: in the verdict's run they would name no model.
        """
        from mlflow.entities import Metric

        model = self.find(digest)
        if model is None or not model.source_run_id:
            return
        points = [Metric(clean(key), value, at, 0, model_id=model.model_id) for key, value in figures.items()]
        self.server.log(model.source_run_id, points)

    def promote(self, event: Event, weights: Weights, run: str, late: bool) -> None:
        """Register the shipped model once, and move the alias to it unless a variant made it.

        late: the event waited in the outbox; then a decision that was recorded after it keeps the alias.
        """
        from mlflow.exceptions import MlflowException

        client, name = self.server.client, event.header.experiment
        model = self.ensure(weights, run)
        with self.server.alone():
            try:
                client.create_registered_model(name, description=f"what recipe {name} ships")
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
        """Compare with the champion: in words, and True if shown to be worse by more than a margin."""
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

        On a server the source is the logged model, since a server accepts no path outside its own store.  In a database it is
        the path: MLflow 3.17 would look a models:/ URI up with its global client, which may have another database.
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
