"""Champion: the version of a recipe's registered model with the alias `champion`."""

from collections.abc import Mapping
from pathlib import Path

from flows.tracking.address import resolve_uri
from flows.tracking.models import ALIAS
from flows.tracking.server import Server
from tasks.shared.errors import ConfigError


def read_champion(uri: str, root: Path, recipe: str) -> Mapping[str, str]:
    """Return the tags of the champion: path, digest, step, verdict.key.  Raises ConfigError."""
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
