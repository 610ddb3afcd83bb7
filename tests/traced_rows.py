"""Runs of the traces technique on rows of any task, against an endpoint on loopback."""

import json

from tasks.shared.formats.rows import Message, Row, read_rows, write_rows
from tasks.shared.formats.tasks import write_tasks
from tasks.shared.technique import Artifact, Inputs, Kind, StepRun
from tasks.traces.openai import OpenAI


def chat(number, *turns, **more):
    """A row from texts of user and assistant in turn."""
    roles = ("user", "assistant") * len(turns)
    messages = tuple(Message(role=role, content=text) for role, text in zip(roles, turns, strict=False))
    return Row(id=f"row-{number}", group=f"g{number}", messages=messages, **more)


def trace(folder, rows, url, tasks=None, name="out", **settings):
    """Metrics, rows and card of a run; all runs of a test share the cache of answers."""
    corpus, out = folder / f"corpus-{name}", folder / name
    corpus.mkdir()
    out.mkdir()
    write_rows(corpus / "train.jsonl", rows)
    write_tasks(corpus, tasks or {})
    run = StepRun("traces", 3, folder / f"scratch-{name}", folder / "predictions" / f"code-{name}")
    inputs = Inputs({"prompts": (Artifact("corpus", Kind.CORPUS, corpus),)})
    metrics = OpenAI(base_url=url, **{"model": "teacher", "gold_ratio": 0, "samples": 1, "concurrency": 2, **settings})(
        inputs, out, run
    )
    return metrics, read_rows(out / "train.jsonl"), json.loads((out / "card.json").read_text())


def bodies(server):
    return [body for _, _, body in server.seen]


def asked(body):
    return body["messages"][-1]["content"]
