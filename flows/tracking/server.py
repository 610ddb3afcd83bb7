"""Client of an MLflow tracking server; its errors become Unreachable or Refused."""

import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from flows.tracking.address import mask, sqlite_file
from flows.tracking.errors import Refused, Unreachable

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

PATIENCE_S = 10
"""Timeout of one request, which is sent twice at most, so that a dead server delays a run only once, by seconds.

MLFLOW_HTTP_REQUEST_TIMEOUT and MLFLOW_HTTP_REQUEST_MAX_RETRIES override it.
"""
REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE", "RESOURCE_ALREADY_EXISTS"}
EXISTS = "RESOURCE_ALREADY_EXISTS"
EXPERIMENT_KIND, TRAINING = "mlflow.experimentKind", "custom_model_development"
"""Tag that makes MLflow 3 open an experiment on its table of runs; without it, an empty page of traces may open."""


def prepare_mlflow() -> None:
    """Set the environment that MLflow reads on import: quiet, offline, short timeouts."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(PATIENCE_S),
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_CONFIGURE_LOGGING": "false",
    }.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # we report failures, once and without a traceback
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it warns of every retry


class Server:
    """A client that opens on first use.

    root: folder of the lock, and of mlartifacts/ for a sqlite file.
    """

    def __init__(self, uri: str, root: Path) -> None:
        self.uri, self.root = uri, root
        self._client: MlflowClient | None = None
        self._experiments: dict[str, str] = {}

    @property
    def client(self) -> "MlflowClient":
        """The MLflow client.

        Opening a new sqlite database migrates its schema, and two processes that do so at once destroy it; hence the lock.
        """
        if self._client is None:
            prepare_mlflow()
            import mlflow

            with self.exclusive():
                prepare_database(sqlite_file(self.uri))
                client = mlflow.MlflowClient(self.uri)
                client.search_experiments(max_results=1)  # its first use opens the store
                self._client = client
        return self._client

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock out other processes of this machine that would open the database or move an alias."""
        file = sqlite_file(self.uri)
        own = file is None or file.parent == self.root
        lock = self.root / "artifacts" / ".mlflow.lock" if own or file is None else file.with_name(f".{file.name}.lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=120, thread_local=False):
            yield

    def settle(self) -> None:
        """Merge a sqlite database's write-ahead log into its file, so that a copy is complete."""
        if (file := sqlite_file(self.uri)) is not None:
            with closing(sqlite3.connect(file, timeout=5)) as database:
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def experiment(self, name: str) -> str:
        """Return the id of the experiment; create it if it does not exist."""
        if name not in self._experiments:
            client = self.client
            with self.exclusive():
                found = client.get_experiment_by_name(name)
                place = (self.root / "mlartifacts").as_uri() if sqlite_file(self.uri) is not None else None
                self._experiments[name] = (
                    found.experiment_id if found else client.create_experiment(name, artifact_location=place)
                )
                if found is None or EXPERIMENT_KIND not in found.tags:
                    client.set_experiment_tag(self._experiments[name], EXPERIMENT_KIND, TRAINING)
        return self._experiments[name]

    def find_run(self, experiments: Sequence[str], tags: Mapping[str, str]) -> Any:
        """Find the newest run with these tags; None if there is none."""
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        found = self.client.search_runs(list(experiments), wanted, max_results=1)
        return found[0] if found else None

    def log(
        self,
        run: str,
        metrics: "Iterable[Metric]" = (),
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        """Log any number of figures in as few requests as MLflow's limits allow."""
        from mlflow.entities import Param, RunTag

        points = list(metrics)
        pairs = [Param(clean(key), str(value)[:500]) for key, value in (params or {}).items()]
        marks = [RunTag(clean(key), str(value)[:5000]) for key, value in (tags or {}).items()]
        while points or pairs or marks:
            self.client.log_batch(run, metrics=points[:800], params=pairs[:100], tags=marks[:100])
            points, pairs, marks = points[800:], pairs[100:], marks[100:]


def prepare_database(file: Path | None) -> None:
    """Create a missing sqlite file, and switch it to write-ahead logging.

    MLflow builds the schema in dozens of steps and cannot open a file whose creation was killed, so the file is created under
    another name and renamed.  Write-ahead logging lets readers and one writer work at once.
    """
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        import mlflow

        fresh = file.with_name(f".{file.name}.new")
        for leftover in file.parent.glob(f"{fresh.name}*"):
            leftover.unlink()
        mlflow.MlflowClient(f"sqlite:///{fresh}").search_experiments(max_results=1)
        fresh.replace(file)
    with closing(sqlite3.connect(file, timeout=10)) as database:
        database.execute("PRAGMA journal_mode=WAL")


def clean(key: str) -> str:
    """Replace characters that MLflow does not accept in a key; cut it to 250 characters."""
    return "".join(letter if letter.isalnum() or letter in "_-./: " else "_" for letter in key)[:250]


@contextmanager
def sending_to(server: Server) -> Iterator[None]:
    """Turn errors of MLflow, its database and its artifact store into Unreachable or Refused.

    OSError covers errors of requests, a full or read-only disk, and a lock that is not released.
    """
    prepare_mlflow()
    import sys

    from alembic.util import CommandError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError
    from urllib3.exceptions import HTTPError

    cloud = sys.modules.get("botocore.exceptions")  # errors of an S3 artifact store are not MlflowExceptions
    foreign: tuple[type[Exception], ...] = (
        SQLAlchemyError,
        sqlite3.Error,
        CommandError,
        HTTPError,
        OSError,
        ImportError,
    )
    if cloud is not None:
        foreign = (*foreign, cloud.BotoCoreError, cloud.ClientError)
    try:
        yield
    except MlflowException as error:
        kind = Refused if error.error_code in REFUSALS else Unreachable
        raise kind(first_line(error, server.uri)) from None
    except foreign as error:
        raise Unreachable(f"{type(error).__name__}: {first_line(error, server.uri)}") from None


def first_line(error: Exception, uri: str) -> str:
    """First line of an error, credentials masked; both ends of a nested message of requests."""
    text = (str(error).strip().splitlines() or [""])[0]
    call, nested, cause = text.partition(" failed with exception ")
    if nested:
        text = f"{call}: {cause.rpartition(': ')[2].rstrip(chr(34) + chr(39) + ')')}"
    return mask(text, uri)[:300]
