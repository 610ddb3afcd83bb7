"""Notes on shared layers: a reader must not take copies for savings."""

from pathlib import Path

from tasks.report.content.shared_layers import sharing_notes
from tasks.shared.model.shared_layers import SHARED_FILE, SharedLayers
from tasks.shared.technique import Artifact, Kind


def test_a_model_with_shared_layers_is_noted_and_no_other(tmp_path: Path) -> None:
    for name in ("shared", "plain"):
        (tmp_path / name).mkdir()
    record = SharedLayers(layers="model.layers", groups=((1, 2), (4, 5, 6)))
    (tmp_path / "shared" / SHARED_FILE).write_text(record.model_dump_json(), "utf-8")
    models = [Artifact(each, Kind.MODEL, tmp_path / each) for each in ("shared", "plain", "absent.gguf")]
    (note,) = sharing_notes(models)
    assert note.startswith("shared: layers 1+2 and 4+5+6 share their weights. No stock format holds a layer once")
