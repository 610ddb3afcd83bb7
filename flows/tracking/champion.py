"""The champion: the model version that a recipe's registered model calls so, and whether a new one may take its place."""

from collections.abc import Mapping
from pathlib import Path

from flows.tracking.address import resolve_uri
from flows.tracking.models import ALIAS
from flows.tracking.server import Server
from tasks.shared.errors import ConfigError


def read_champion(uri: str, root: Path, recipe: str) -> Mapping[str, str]:
    """Tags of the champion's version: path, digest, step, verdict.key.  Raises ConfigError if there is none."""
    from mlflow.exceptions import MlflowException

    address = resolve_uri(uri, root)
    try:
        version = Server(address, root).client.get_model_version_by_alias(recipe, ALIAS)
    except MlflowException as error:
        raise ConfigError(
            f"champion:{recipe}", str(error.message).splitlines()[0], "a registered model with the alias champion",
            f"python -m flows.compress +recipe={recipe} makes one when its verdict is to ship",
        ) from error  # fmt: skip
    return dict(version.tags)
