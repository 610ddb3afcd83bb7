"""Generated tables: stale ones are seen and renewed between their markers, and nothing else is touched."""

from pathlib import Path

import pytest

from flows import sync
from flows.planning.catalog import catalog, first_that_produces
from flows.versioning import documents
from flows.versioning.documents import BEGIN, END, reference, settings_of, stale_documents, table, write_documents
from tasks.distill.sft import SFT
from tasks.prune.hidden import Hidden
from tasks.shared.errors import ConfigError
from tasks.shared.technique import Kind


@pytest.fixture
def readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A README of the test's own, and no page of techniques."""
    monkeypatch.setattr(documents, "README", tmp_path / "README.md")
    monkeypatch.setattr(documents, "PAGE", tmp_path / "techniques.md")
    (tmp_path / "README.md").write_text(f"# Before\n\n{BEGIN}\nold\n{END}\n\nafter\n", "utf-8")
    return tmp_path / "README.md"


def test_a_stale_table_is_seen_and_renewed_between_its_markers(readme: Path) -> None:
    assert list(stale_documents()) == [readme] and "old" in readme.read_text("utf-8")
    assert write_documents() == ["README.md"]
    text = readme.read_text("utf-8")
    assert text == f"# Before\n\n{BEGIN}\n{table(catalog())}\n{END}\n\nafter\n"
    assert not stale_documents() and write_documents() == []


def test_a_document_without_markers_is_a_message(readme: Path) -> None:
    readme.write_text("# Mine\n", "utf-8")
    with pytest.raises(ConfigError, match="no markers"):
        stale_documents()


def test_check_fails_on_a_stale_table(readme: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "compose_tracked", lambda _: {})
    monkeypatch.setattr(sync, "stale_files", lambda _: {})
    monkeypatch.setattr(sync, "choose", lambda *_: [])
    assert sync.main(["--check"]) == 1
    write_documents()
    assert sync.main(["--check"]) == 0


def test_every_technique_is_in_both_tables() -> None:
    entries = catalog()
    short, long = table(entries), reference(entries)
    for entry in entries:
        assert f"[`{entry.name}`](docs/techniques.md#{entry.stage}{entry.name})" in short
        assert f"### {entry.stage}/{entry.name}\n\n{entry.spec.summary}." in long
    rounding = next(entry.spec.summary for entry in entries if (entry.stage, entry.name) == ("quantize", "rtn"))
    assert f"| [quantize/rtn](#quantizertn) | {rounding} | dense | packed | accelerator |  |" in long
    assert "| prune | Remove what a model can spare | [`budget`]" in short
    assert all(line.count(" | ") == 2 for line in short.splitlines())


def test_settings_are_listed_with_their_defaults_nested_and_inherited_ones_too() -> None:
    found = {item.name: item for item in settings_of(SFT())}
    assert found["lora.rank"].default == "0" and "no adapters" in found["lora.rank"].text
    assert found["precision"].default == '"auto"' and found["epochs"].text.startswith("Passes")


def test_the_first_technique_of_a_kind() -> None:
    assert first_that_produces(Kind.REPORT).target == "tasks.report.html.Html"


def test_a_setting_that_a_class_describes_anew_has_its_own_words() -> None:
    words = {item.name: item.text for item in settings_of(Hidden())}
    assert words["ratio"].startswith("Fraction of the channels") and words["max_tokens"].startswith("Most tokens")
