"""The report of a user's own corpora: tables of their cards, and nothing that they do not have."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from verdict_samples import a_verdict, compared, flip, make, measured, measures, only_verdict, score

from tasks.curate.jsonl import Jsonl
from tasks.shared.formats.scores import Measure
from tasks.shared.formats.verdict import Gate
from tasks.shared.technique import Artifact, Inputs, Kind
from tests.tiny_llama import empty_run, sentences

ROWS = 240
LABELS = ("card_arrival", "topic.9", "lost")


def classification(folder: Path) -> Path:
    texts = sentences(ROWS, seed=4)
    lines = [f'"{text}",{LABELS[index % 3]},{index}' for index, text in enumerate(texts)]
    (folder / "own.csv").write_text("\n".join(["text,label,ticket", *lines]), "utf-8")
    return folder / "own.csv"


def chat(folder: Path) -> Path:
    lines = [
        json.dumps({"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}], "ticket": str(index)})
        for index, (ask, answer) in enumerate(zip(sentences(ROWS, seed=4), sentences(ROWS, seed=5), strict=True))
    ]  # fmt: skip
    (folder / "own.jsonl").write_text("\n".join(lines), "utf-8")
    return folder / "own.jsonl"


@pytest.mark.parametrize(("write", "labels"), [(classification, LABELS), (chat, ())])
def test_a_corpus_without_articles_or_labels_has_no_empty_table(
    write: Callable[[Path], Path], labels: tuple[str, ...], tmp_path: Path
) -> None:
    out, run = empty_run(tmp_path, "corpus")
    file = write(tmp_path)
    Jsonl(path=str(file))(Inputs({}), out, run)
    gates = {"same_top": Gate(measure=Measure(title="same top token", binary=False), step="divergence", margin=0.05)}
    bare = {"scores": {"same_top": score(0.8)}, "slices": {}}
    models = {"tuned": measures("baseline", 9, 5, 0.8, **bare), "slim": measures("candidate", 6, 9, 0.8, **bare)}
    comparisons = {"slim": compared(0, measures={"same_top": measured(0.8, 0, 0.01)}, slices=[])}
    verdict = a_verdict(
        reference=None,
        gates=gates,
        models=models,
        comparisons=comparisons,
        flips=[flip("slim", 1).model_copy(update={"kind": ""})],
        noise={},
    )
    inputs = Inputs({**only_verdict(tmp_path, verdict).ports, "corpus": (Artifact("corpus", Kind.CORPUS, out),)})
    page, data = make(tmp_path / "report", inputs)
    assert "intent" not in page.lower() and not re.search(r"<tbody>\s*</tbody>", page)
    (place,) = re.findall(r'<span class="where">(.*?)</span>', page)
    assert ", ," not in place and place.endswith(", faq-0001")
    blocks = {block["title"]: block for block in data["corpus"][0]["blocks"]}
    (tickets,) = blocks["Counts: tags"]["rows"]
    assert tickets[0] == "ticket" and all(cell.endswith(" values") for cell in tickets[1:])
    assert blocks["Reading: files: path"]["rows"][0][0] == file.name
    assert [row[0] for row in blocks.get("Counts: label", {"rows": []})["rows"]] == sorted(labels)
