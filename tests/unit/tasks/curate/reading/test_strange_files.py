"""Files as strangers bring them: what each becomes, or the words with which it is refused."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tasks.curate.jsonl import Jsonl
from tasks.curate.reading.bad_rows import BadRow, Record, quarantine_in
from tasks.curate.reading.files import Account, Ids, known_tasks, make_unique, row_line, write_file_rows
from tasks.curate.reading.row_reader import RowReader
from tasks.shared.errors import DataError
from tasks.shared.formats.rows import Row

TALK = [("user", "Where is it?"), ("assistant", "On the way.")]


def chat(*turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns or TALK], **more}


def lines(*records: Any) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def table(*rows: list[str], delimiter: str = ",", encoding: str = "utf-8") -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    return text.getvalue().encode(encoding)


def parquet(records: list[dict[str, Any]]) -> bytes:
    import pyarrow
    from pyarrow import parquet as files

    stream = io.BytesIO()
    files.write_table(pyarrow.Table.from_pylist(records), stream)
    return stream.getvalue()


@dataclass
class Read:
    rows: list[Row]
    account: Account
    reader: RowReader
    quarantined: list[dict[str, Any]]

    @property
    def first(self) -> Row:
        return self.rows[0]

    @property
    def format(self) -> str:
        return ", ".join(self.reader.formats)

    @property
    def container(self) -> str:
        return ", ".join(self.account.files.values())

    @property
    def talk(self) -> list[tuple[str, str]]:
        return [(message.role, message.content) for message in self.first.messages]


def read(folder: Path, content: bytes, name: str = "data.jsonl", part: str = "", **settings: Any) -> Read:
    folder.mkdir(exist_ok=True)
    file, target = folder / name, folder / "rows.out"
    file.write_bytes(content)
    path = str(file) + part
    reader, ids = RowReader(Jsonl(**settings), known_tasks(path)), Ids()
    with quarantine_in(folder) as quarantine:
        account = write_file_rows("path", path, target, reader, quarantine, ids)
    make_unique([target], ids)
    bad = folder / "quarantine.jsonl"
    entries = [json.loads(line) for line in bad.read_text("utf-8").splitlines()] if bad.exists() else []
    rows = [Row.model_validate_json(line) for line in target.read_bytes().splitlines()]
    assert account.read == len(rows) + len(entries), "rows in = rows out + quarantined"
    return Read(rows, account, reader, entries)


@dataclass(frozen=True)
class Case:
    """content: of the file.  format, container: as the reader names them.  talk: roles and texts of the first row.
    rows, bad: number of rows and of quarantined records.  reason: of the first one.  fields: of the first row."""

    content: bytes
    format: str = ""
    container: str = ""
    talk: list[tuple[str, str]] = field(default_factory=list)
    rows: int = 1
    bad: int = 0
    reason: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    name: str = "data.jsonl"
    part: str = ""


GOOD = lines(chat()) * 1
CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"id": 1}'}}
TOOL = {"type": "function", "function": {"name": "find", "parameters": {}}}
LABELS = [["text", "category"], ["Where is my card?", "card_arrival"], ["It was declined", "declined card"]]
SHARE = {"conversations": [{"from": "human", "value": "Where is it?"}, {"from": "gpt", "value": "On the way."}]}

CASES: dict[str, Case] = {
    # --- formats of conversations
    "openai": Case(lines(chat()), "OpenAI chat", "JSON lines", TALK),
    "openai with name, weight and developer": Case(
        lines(
            {
                "messages": [
                    {"role": "developer", "content": "Be kind."},
                    {"role": "user", "content": "Hi", "name": "ann"},
                    {"role": "assistant", "content": "Ho", "weight": 0},
                    {"role": "user", "content": "So?"},
                    {"role": "assistant", "content": "Yes", "weight": 1},
                ]
            }
        ),
        "OpenAI chat",
        talk=[("developer", "Be kind."), ("user", "Hi"), ("assistant", "Ho"), ("user", "So?"), ("assistant", "Yes")],
    ),
    "content parts": Case(
        lines(
            chat(
                ("user", [{"type": "text", "text": "One."}, {"type": "input_text", "text": "Two."}]),
                ("assistant", ["Three."]),
            )
        ),
        talk=[("user", "One.\nTwo."), ("assistant", "Three.")],
    ),
    "an image among texts": Case(
        lines(chat(), chat(("user", [{"type": "image_url", "image_url": {"url": "x"}}]))),
        bad=1,
        reason="images in a message",
    ),
    "reasoning beside the answer": Case(
        lines(
            {
                "messages": [
                    {"role": "user", "content": "2+2?"},
                    {"role": "assistant", "content": "4", "reasoning_content": "Add."},
                ]
            }
        ),
        talk=[("user", "2+2?"), ("assistant", "4")],
        fields={"reasoning": "Add."},
    ),
    "reasoning in the answer": Case(
        lines(chat(("user", "2+2?"), ("assistant", "<think>\nAdd.\n</think>\n\n4"))),
        talk=[("user", "2+2?"), ("assistant", "4")],
        fields={"reasoning": "Add."},
    ),
    "only reasoning": Case(
        lines(chat(), chat(("user", "2+2?"), ("assistant", "<think>\nAdd."))), bad=1, reason="only reasoning"
    ),
    "tool calls with null content": Case(
        lines(
            {
                "tools": [TOOL],
                "messages": [
                    {"role": "user", "content": "Where?"},
                    {"role": "assistant", "content": None, "tool_calls": [CALL]},
                    {"role": "tool", "tool_call_id": "c1", "content": "here"},
                    {"role": "assistant", "content": "Here."},
                ],
            }
        ),
        talk=[("user", "Where?"), ("assistant", ""), ("tool", "here"), ("assistant", "Here.")],
        fields={"tools": json.dumps([TOOL])},
    ),
    "functions before tools": Case(
        lines(
            {
                "functions": [{"name": "find"}],
                "messages": [
                    {"role": "user", "content": "Where?"},
                    {"role": "assistant", "content": None, "function_call": {"name": "find", "arguments": "{}"}},
                    {"role": "function", "name": "find", "content": "here"},
                ],
            }
        ),
        talk=[("user", "Where?"), ("assistant", ""), ("tool", "here")],
        fields={"tools": json.dumps([{"type": "function", "function": {"name": "find"}}])},
    ),
    "anthropic blocks": Case(
        lines(
            {
                "system": "Be kind.",
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "Where?"}]},
                    {
                        "role": "assistant",
                        "content": [{"type": "tool_use", "id": "t", "name": "find", "input": {"id": 1}}],
                    },
                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "here"}]},
                ],
            }
        ),
        talk=[("system", "Be kind."), ("user", "Where?"), ("assistant", ""), ("tool", "here")],
    ),
    "gemini": Case(
        lines(
            {
                "contents": [
                    {"role": "user", "parts": [{"text": "Where is it?"}]},
                    {"role": "model", "parts": [{"text": "On the way."}]},
                ]
            }
        ),
        "Gemini contents",
        talk=TALK,
    ),
    "batch requests": Case(
        lines({"custom_id": "r-1", "method": "POST", "url": "/v1", "body": chat(("user", "Hi"), model="m")}),
        "OpenAI chat",
        talk=[("user", "Hi")],
        fields={"id": "r-1"},
    ),
    "openai preference": Case(
        lines(
            {
                "input": chat(("user", "Hi")),
                "preferred_output": [{"role": "assistant", "content": "Ho"}],
                "non_preferred_output": [{"role": "assistant", "content": "No"}],
            }
        ),
        "OpenAI preference data, the preferred answers",
        talk=[("user", "Hi"), ("assistant", "Ho")],
    ),
    "sharegpt with an id": Case(lines({"id": "QWJhYvA_0", **SHARE}), "ShareGPT", talk=TALK, fields={"id": "QWJhYvA_0"}),
    "sharegpt with system, tool and odd names": Case(
        lines(
            {
                "conversations": [
                    {"from": "system", "value": "S"},
                    {"from": "Human", "value": "H"},
                    {"from": "function_call", "value": '{"name": "find", "arguments": {"a": 1}}'},
                    {"from": "observation", "value": "O"},
                    {"from": "chatgpt", "value": "G"},
                ]
            }
        ),
        talk=[("system", "S"), ("user", "H"), ("assistant", ""), ("tool", "O"), ("assistant", "G")],
    ),
    "alpaca": Case(
        lines({"instruction": "Say where.", "input": "The lamp.", "output": "Here."}),
        "Alpaca",
        talk=[("user", "Say where.\n\nThe lamp."), ("assistant", "Here.")],
    ),
    "alpaca with system and history": Case(
        lines({"system": "S", "history": [["a", "b"]], "instruction": "c", "input": "", "output": "d"}),
        "Alpaca",
        talk=[("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
    ),
    "dolly": Case(
        lines({"instruction": "Why?", "context": "", "response": "So.", "category": "open_qa"}),
        "instruction/response",
        talk=[("user", "Why?"), ("assistant", "So.")],
        fields={"tags": {"category": "open_qa"}},
    ),
    "prompt and completion": Case(
        lines({"prompt": "Where is it?", "completion": "On the way."}), "prompt/completion", talk=TALK
    ),
    "prompt and completion as turns": Case(
        lines(
            {
                "prompt": [{"role": "user", "content": "Where is it?"}],
                "completion": [{"role": "assistant", "content": "On the way."}],
            }
        ),
        "prompt/completion",
        talk=TALK,
    ),
    "prompts alone": Case(lines({"prompt": "Where is it?"}), "prompts without answers", talk=TALK[:1]),
    "kto": Case(lines({"prompt": "Where is it?", "completion": "No idea.", "label": False}), talk=TALK[:1]),
    "chosen and rejected": Case(
        lines({"prompt": "Where is it?", "chosen": "On the way.", "rejected": "No idea."}),
        "preference data, the chosen answers",
        talk=TALK,
    ),
    "chosen and rejected as whole conversations": Case(
        lines(
            {"chosen": chat()["messages"], "rejected": chat(("user", "Where is it?"), ("assistant", "No."))["messages"]}
        ),
        talk=TALK,
    ),
    "hh transcripts": Case(
        lines(
            {
                "chosen": "\n\nHuman: Where is it?\n\nAssistant: On the way.",
                "rejected": "\n\nHuman: Where is it?\n\nAssistant: No.",
            }
        ),
        talk=TALK,
    ),
    "question and answer": Case(
        lines({"question": "Where is it?", "answer": "On the way."}), "question/answer", talk=TALK
    ),
    "gsm8k": Case(
        lines({"question": "6 times 12?", "answer": "6*12 = <<6*12=72>>72\n#### 1,072"}),
        talk=[("user", "6 times 12?"), ("assistant", "6*12 = <<6*12=72>>72\n#### 1,072")],
        settings={"task": {"type": "reasoning"}},
        fields={"key.0.value": 1072.0, "task": "reasoning"},
    ),
    "math in a box": Case(
        lines({"problem": "2x=3?", "solution": "So \\boxed{1.5}, in 2 steps."}),
        settings={"task": {"type": "reasoning"}},
        fields={"key.0.value": 1.5},
    ),
    "squad": Case(
        lines(
            {
                "context": "It is red.",
                "question": "Which color?",
                "answers": {"text": ["red", "Red"], "answer_start": [6, 6]},
                "id": "5",
            }
        ),
        talk=[("user", "It is red.\n\nWhich color?"), ("assistant", "red")],
        fields={"key.0.references": ("red", "Red"), "id": "5"},
    ),
    "options with an index": Case(
        lines({"query": "He sat", "choices": ["down.", "up."], "gold": 1}),
        "questions with options",
        talk=[("user", "He sat\n\nA. down.\nB. up."), ("assistant", "B")],
        fields={"key.0.right": 1, "task": "reasoning"},
    ),
    "options with letters (arc)": Case(
        lines({"question": "Which?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}),
        fields={"key.0.right": 1},
    ),
    "options in columns": Case(
        lines(
            {"premise": "He fell.", "choice1": "He slipped.", "choice2": "He flew.", "question": "cause", "label": 0}
        ),
        fields={"key.0.options": ("He slipped.", "He flew.")},
    ),
    "a right option that is none": Case(
        lines(
            {"question": "a?", "choices": ["x", "y"], "answer": 0},
            {"question": "b?", "choices": ["x", "y"], "answer": 4},
        ),
        bad=1,
        reason="right option",
    ),
    "document and summary": Case(
        lines({"document": "Long.", "summary": "S."}),
        "document/summary",
        settings={"task": {"type": "summarization"}},
        fields={"key.0.references": ("S.",)},
    ),
    "turns without roles": Case(
        lines({"dialog": ["a", "b", "c"]}), talk=[("user", "a"), ("assistant", "b"), ("user", "c")]
    ),
    "transcripts by speaker": Case(
        json.dumps([[{"speaker": "U", "text": "a"}, {"speaker": "SYSTEM", "text": "b"}]]).encode(),
        talk=[("user", "a"), ("assistant", "b")],
        container="a JSON array",
    ),
    "self-instruct": Case(
        lines({"instruction": "Do.", "instances": [{"input": "", "output": "Done."}]}),
        "self-instruct",
        talk=[("user", "Do."), ("assistant", "Done.")],
    ),
    "extraction": Case(
        lines(chat(("user", "Ann, 5"), ("assistant", '```json\n{"n": 5}\n```'))),
        settings={"task": {"type": "extraction"}},
        fields={"key.0.value": '{"n": 5}'},
    ),
    "a tool call as target": Case(
        lines(
            {
                "tools": [TOOL],
                "messages": [
                    {"role": "user", "content": "Where?"},
                    {"role": "assistant", "content": None, "tool_calls": [CALL]},
                ],
            }
        ),
        settings={"task": {"type": "tools"}},
        fields={"key.0.name": "find", "key.0.arguments": '{"id": 1}'},
    ),
    "rows of the earlier schema": Case(
        lines(
            {
                "id": "a",
                "kind": "refuse",
                "intent": "legal",
                "group": "g",
                "accept": [],
                "article": "",
                **chat(("user", "Sue?"), ("assistant", "legal\nNo.")),
            }
        ),
        "rows of this project's earlier schema",
        fields={"label": "legal", "declines": True, "task": "support", "id": "a"},
    ),
    # --- labels
    "texts with labels": Case(
        table(*LABELS),
        "texts (text) with labels (category)",
        "CSV in utf-8",
        [("user", "Where is my card?"), ("assistant", "card_arrival")],
        rows=2,
        fields={"label": "card_arrival", "task": "classification"},
        name="train.csv",
    ),
    "labels as whole answers": Case(
        lines(chat(("user", "Where?"), ("assistant", "declined card"))),
        settings={"task": {"type": "classification"}},
        fields={"label": "declined card"},
    ),
    "labels on the first line": Case(
        lines(chat(("user", "Where?"), ("assistant", "parcel\nIt comes."))),
        settings={"task": {"type": "classification", "layout": "first_line"}},
        fields={"label": "parcel"},
    ),
    "labels in JSON": Case(
        lines(chat(("user", "Where?"), ("assistant", '{"label": "parcel"}'))),
        settings={"task": {"type": "classification", "layout": "json"}},
        fields={"label": "parcel"},
    ),
    "numbers as labels with their names": Case(
        lines({"text": "Fine.", "label": 1, "label_text": "positive"}), fields={"label": "positive", "tags": {}}
    ),
    "a label that is not listed": Case(
        table(*LABELS, ["x y z", "card_arrival"]),
        rows=2,
        bad=1,
        reason="label that the task does not list",
        settings={"task": {"type": "classification", "labels": ["card_arrival"]}},
    ),
    "a label beside a question": Case(
        lines({**chat(("system", "S"), ("user", "Where?")), "intent": "find", "lang": "en"}),
        settings={"task": {"type": "classification"}},
        talk=[("system", "S"), ("user", "Where?"), ("assistant", "find")],
        fields={"label": "find", "tags": {"lang": "en"}},
    ),
    "Japanese in the encoding that is named": Case(
        "question,answer\n荷物は,明日\n".encode("shift_jis"),
        settings={"encoding": "shift_jis"},
        talk=[("user", "荷物は"), ("assistant", "明日")],
        name="x.csv",
    ),
    "customer and agent": Case(
        table(["Customer", "Agent", "source"], ["Where is it?", "On the way.", "web"]),
        talk=TALK,
        fields={"tags": {"source": "web"}},
    ),
    "several labels": Case(
        lines({"text": "Both.", "tags": "a, b"}),
        settings={"task": {"type": "classification"}, "map": {"user": "text", "labels": "tags"}},
        talk=[("user", "Both."), ("assistant", "a, b")],
        fields={"key.0.labels": ("a", "b")},
    ),
    "a label beside a free answer": Case(
        lines({"q": "Where?", "a": "Here.", "intent": "find"}),
        settings={"map": {"user": "q", "assistant": "a", "label": "intent"}},
        fields={"tags": {"label": "find"}, "key": (), "task": "chat"},
    ),
    # --- first lines and refusals stay what they are
    "a first line of one word": Case(
        lines(chat(("user", "Reset?"), ("assistant", "Sure!\nHold the button."))),
        talk=[("user", "Reset?"), ("assistant", "Sure!\nHold the button.")],
        fields={"label": "", "key": ()},
    ),
    "words of a refusal": Case(
        lines(chat(("user", "Larger?"), ("assistant", "You cannot change it."))), fields={"declines": False}
    ),
    "a refusal that the data name": Case(
        lines(
            {
                "messages": [
                    {"role": "user", "content": "Sue?"},
                    {"role": "assistant", "content": None, "refusal": "No."},
                ]
            }
        ),
        fields={"declines": True, "answer": "No."},
    ),
    # --- map
    "columns by map": Case(
        table(["ticket", "question", "reply", "customer"], ["7", "Where?", "Here.", "ann"]),
        name="t.csv",
        talk=[("user", "Where?"), ("assistant", "Here.")],
        settings={
            "map": {"messages": [{"user": "question"}, {"assistant": "reply"}], "id": "ticket", "group": "customer"}
        },
        fields={"id": "7", "group": "ann"},
    ),
    "templates and inner fields": Case(
        lines({"ticket": {"title": "Lamp", "body": "Dark."}, "ok": "Yes."}),
        settings={"map": {"user": "{ticket.title}: {ticket.body}", "assistant": "ok"}},
        talk=[("user", "Lamp: Dark."), ("assistant", "Yes.")],
    ),
    "facts, evidence and a decline": Case(
        lines({"q": "Days?", "f": [["45 days", "45"]], "doc": "d1", "no": "yes"}),
        settings={"map": {"user": "q", "facts": "f", "evidence": "doc", "decline": "no"}},
        fields={"facts": (("45 days", "45"),), "evidence": "d1", "declines": True, "answered": False},
    ),
    "number, json and call": Case(
        lines({"q": "How much?", "n": "$1,200", "j": {"a": 1}, "c": {"name": "pay", "arguments": {"x": 1}}}),
        settings={"map": {"user": "q", "number": "n", "json": "j", "call": "c"}},
        fields={"key.0.value": 1200.0, "key.1.value": '{"a": 1}', "key.2.arguments": '{"x": 1}'},
    ),
    "tasks by a column": Case(
        lines({"q": "a?", "r": "x", "kind": "sort"}, {"q": "b?", "r": "y", "kind": "talk"}),
        rows=2,
        fields={"task": "sort", "label": "x"},
        settings={
            "map": {"user": "q", "assistant": "r", "task": "kind"},
            "tasks": {"sort": {"type": "classification"}, "talk": {}},
        },
    ),
    # --- containers
    "a JSON array": Case(
        json.dumps([{"instruction": "a", "output": "b"}] * 3, indent=2).encode(), "Alpaca", "a JSON array", rows=3
    ),
    "a JSON array on one line": Case(
        json.dumps([chat(), chat(("user", "b"))]).encode(), container="a JSON array", rows=2
    ),
    "a JSON object with a list": Case(
        json.dumps({"version": 1, "data": [chat()]}, indent=1).encode(),
        container="a JSON object with the rows in 'data'",
    ),
    "a JSON object with several lists": Case(
        json.dumps({"train": [["a b", "x"]], "val": [["c d", "y"]]}).encode(),
        part="#val",
        talk=[("user", "c d"), ("assistant", "y")],
    ),
    "one conversation over several lines": Case(json.dumps(chat(), indent=2).encode(), talk=TALK),
    "objects over several lines": Case(
        (json.dumps(chat(), indent=2) + "\n").encode() * 3, container="JSON objects over several lines", rows=3
    ),
    "a table with semicolons in cp1252": Case(
        table(["frage", "antwort"], ["Größe?", "Groß."], delimiter=";", encoding="cp1252"),
        container="CSV with semicolons in cp1252",
        name="x.csv",
        settings={"map": {"user": "frage", "assistant": "antwort"}},
        talk=[("user", "Größe?"), ("assistant", "Groß.")],
    ),
    "a table from Excel": Case(
        b"\xef\xbb\xbfsep=;\r\n" + table(["question", "answer"], ["a?", "b"], delimiter=";"),
        container="CSV with semicolons in utf-8-sig",
        talk=[("user", "a?"), ("assistant", "b")],
    ),
    "a table in UTF-16": Case(
        table(["question", "answer"], ["a?", "ä"], delimiter="\t", encoding="utf-16"),
        container="TSV in utf-16",
        talk=[("user", "a?"), ("assistant", "ä")],
    ),
    "line breaks, quotes and commas in cells": Case(
        table(["question", "answer"], ['He said: "a,\nb"?', "c\n\nd"]),
        talk=[("user", 'He said: "a,\nb"?'), ("assistant", "c\n\nd")],
    ),
    "a table without a header": Case(
        table(["Where is my card, please?", "card"], ["It was declined today.", "pay"]),
        rows=2,
        container="CSV in utf-8, without a header",
        talk=[("user", "Where is my card, please?"), ("assistant", "card")],
    ),
    "a table that holds JSON": Case(
        table(["id", "messages"], ["1", json.dumps(chat()["messages"])]), "OpenAI chat", talk=TALK
    ),
    "a table that holds Python lists": Case(
        table(["id", "messages"], ["1", str(chat()["messages"])]), "OpenAI chat", talk=TALK
    ),
    "a table with an unclosed quote": Case(
        table(["question", "answer"], *[[f"q{number}?", "a"] for number in range(200)])
        + b'"open?,a\n'
        + table(["last?", "z"]),
        rows=201,
        bad=1,
        reason="unbalanced quotes in a table",
    ),
    "a ragged table": Case(
        table(["question", "answer"], *[[f"q{number}?", "a"] for number in range(300)]) + b"one,two,three\n",
        rows=300,
        bad=1,
        reason="too many or too few cells",
    ),
    "parquet by mistake called .jsonl": Case(
        parquet([chat()]), "OpenAI chat", "Parquet (although it is called .jsonl)", TALK
    ),
    "parquet with tools of different fields": Case(
        parquet([{**chat(), "tools": [{"name": "a", "x": 1, "y": None}, {"name": "b", "x": None, "y": 2}]}]),
        name="x.parquet",
        fields={
            "tools": json.dumps(
                [
                    {"type": "function", "function": {"name": "a", "x": 1}},
                    {"type": "function", "function": {"name": "b", "y": 2}},
                ]
            )
        },
    ),
    "gzip": Case(gzip.compress(GOOD), container="gzip'ed JSON lines", talk=TALK, name="a.jsonl"),
    "gzip'ed parquet": Case(gzip.compress(parquet([chat()])), talk=TALK, name="a.parquet.gz"),
    "bzip2": Case(bz2.compress(GOOD), container="bzip2ped JSON lines", talk=TALK),
    "xz": Case(lzma.compress(GOOD), talk=TALK),
    "lines with commas of an array": Case((GOOD.strip() + b",\n") * 2 + GOOD, talk=TALK, rows=3),
    "comments before the lines": Case(
        b"# export of today\n" + GOOD * 150, talk=TALK, rows=150, bad=1, reason="not JSON"
    ),
    "objects without line ends": Case(GOOD.strip() * 3, talk=TALK, rows=3),
    "line ends of old Macs": Case(GOOD.replace(b"\n", b"\r") * 3, talk=TALK, rows=3),
    "UTF-16 without a mark": Case((GOOD * 2).decode().encode("utf-16-le"), talk=TALK, rows=2),
    "a name twice in the header": Case(
        table(["question", "question", "answer"], ["Where is it?", "x", "On the way."]),
        talk=TALK,
        fields={"tags": {"question_2": "x"}},
    ),
    "options in a cell": Case(
        table(["question", "choices", "answer"], ["Which?", '["x", "y"]', "1"]), fields={"key.0.options": ("x", "y")}
    ),
    "rows of the hub's viewer": Case(
        json.dumps(
            {
                "features": [{"name": "q"}],
                "rows": [{"row_idx": 0, "row": {"question": "Where is it?", "answer": "On the way."}}],
            }
        ).encode(),
        talk=TALK,
    ),
    "pairs of role and text": Case(
        lines({"conversation": [["user", "Where is it?"], ["assistant", "On the way."]]}), talk=TALK
    ),
    "a table without a header, label first": Case(
        b"ham\tGo until jurong point\nspam\tFree entry in a comp\nham\tOk lar joking\n",
        talk=[("user", "Go until jurong point"), ("assistant", "ham")],
        rows=3,
    ),
    # --- dirt
    "a byte order mark, CRLF and blank lines": Case(
        b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n") + b"\r\n  \n" + GOOD, talk=TALK, rows=2
    ),
    "white space before the first line": Case(b"\n\n" + GOOD, talk=TALK),
    "no line end at the end": Case(GOOD.strip(), talk=TALK),
    "one bad line": Case(GOOD * 150 + b"{broken\n" + GOOD * 50, rows=200, bad=1, reason="not JSON"),
    "a bad line first": Case(b'{"messages": [{"role": "us\n' + GOOD * 150, rows=150, bad=1, reason="not JSON"),
    "a line cut at the end": Case(GOOD * 150 + GOOD[:40], rows=150, bad=1, reason="not JSON"),
    "two objects on a line": Case(GOOD * 150 + GOOD.strip() * 2, rows=150, bad=1, reason="JSON followed by other text"),
    "a latin-1 line": Case(
        GOOD * 150 + lines(chat(("user", "Größe?"), ("assistant", "Ja"))).decode().encode("latin-1"),
        rows=150,
        bad=1,
        reason="not UTF-8",
    ),
    "NUL bytes instead of a line": Case(GOOD * 150 + b"\0" * 500 + b"\n", rows=150, bad=1, reason="NUL bytes"),
    "an escaped NUL": Case(
        lines(chat(("user", "a\0b"), ("assistant", "c"))), talk=[("user", "a\0b"), ("assistant", "c")]
    ),
    "half of a surrogate pair": Case(
        GOOD * 150 + b'{"messages": [{"role": "user", "content": "\\ud83d"}]}\n', rows=150, bad=1, reason="surrogate"
    ),
    "NaN in a column": Case(
        b'{"prompt": "Where is it?", "completion": "On the way.", "score": NaN}\n', talk=TALK, fields={"tags": {}}
    ),
    "long numbers": Case(
        b'{"prompt": "Where is it?", "completion": "On the way.", "order": 12345678901234567890123}\n',
        fields={"tags": {"order": "12345678901234567890123"}},
    ),
    "a line separator inside a text": Case(
        lines(chat(("user", "a\u2028b"), ("assistant", "c"))), talk=[("user", "a\u2028b"), ("assistant", "c")]
    ),
    "two user turns, assistant first, user last": Case(
        lines(chat(("assistant", "Hello!"), ("user", "a"), ("user", "b"), ("assistant", "c"), ("user", "d"))),
        talk=[("assistant", "Hello!"), ("user", "a"), ("user", "b"), ("assistant", "c"), ("user", "d")],
    ),
    "several system turns": Case(
        lines(chat(("system", "s"), ("user", "a"), ("system", "t"), ("assistant", "b"))),
        talk=[("system", "s"), ("user", "a"), ("system", "t"), ("assistant", "b")],
    ),
    "an empty answer": Case(lines(chat(("user", "a"), ("assistant", " "))), talk=[("user", "a")]),
    "an unknown role": Case(GOOD + lines(chat(("alien", "a"))), bad=1, reason="an unknown role"),
    "only a system turn": Case(GOOD + lines(chat(("system", "Be kind."))), bad=1, reason="only a system turn"),
    "no messages": Case(GOOD + lines({"messages": []}), bad=1, reason="no messages"),
    "a record that is a number": Case(GOOD + b"17\n", bad=1, reason="not an object"),
    "the same id twice": Case(
        lines({"id": "a", **chat()}, {"id": "a", **chat(("user", "b"))}, {"id": "a-2", **chat(("user", "c"))}),
        rows=3,
        fields={"id": "a"},
    ),
    "other fields and columns": Case(
        lines(
            {
                "messages": [{"role": "user", "content": "a", "timestamp": 5}],
                "source": "web",
                "metadata": {"lang": "en", "deep": {"x": 1}},
                "long": "x" * 500,
            }
        ),
        fields={"tags": {"source": "web", "metadata.lang": "en"}},
    ),
    "mixed formats": Case(
        lines(chat(), SHARE, {"prompt": "a", "completion": "b"}), "OpenAI chat, ShareGPT, prompt/completion", rows=3
    ),
    "columns in capitals with spaces": Case(
        table(["Question", "Best Answer", "Category"], ["Where is it?", "On the way.", "x"]),
        talk=TALK,
        fields={"tags": {"Category": "x"}},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_strange_file_is_read(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    settings = {"max_quarantined": 0.01, **case.settings}
    found = read(tmp_path / "x", case.content, case.name, case.part, **settings)
    assert (len(found.rows), len(found.quarantined)) == (case.rows, case.bad), found.quarantined[:2]
    if case.format:
        assert found.format == case.format
    if case.container:
        assert found.container == case.container
    if case.talk:
        assert found.talk == case.talk
    for path, wanted in case.fields.items():
        value: Any = found.first
        for part in path.split("."):
            value = value[int(part)] if part.isdigit() else getattr(value, part)
        assert value == wanted, path
    if case.reason:
        assert case.reason in found.quarantined[0]["reason"]
    assert len({row.id for row in found.rows}) == len(found.rows)
    assert len(set(map(len, (found.reader.tasks, {row.task for row in found.rows})))) == 1


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
REFUSED: dict[str, tuple[bytes, str]] = {
    "most lines bad": (GOOD + b'{"messages": [\n{"a": \n{"b" 1}\n', r"(?s)3 of 4 .*not JSON"),
    "more bad lines than good": (GOOD + b"{bad\n" * 3, r"(?s)3 of 4 .*first: data.jsonl line 2"),
    "an empty file": (b"", "no rows"),
    "texts with lists of labels": (lines({"text": "Late", "labels": ["late", "lost"]}), "user: text, labels: labels"),
    "only blank lines": (b"\n\r\n  \n", "no rows"),
    "only NUL bytes": (b"\0" * 100, "NUL bytes"),
    "a ZIP or Excel file": (b"PK\x03\x04" + b"\0" * 50, "ZIP archive, or an Excel"),
    "a git-lfs pointer": (LFS, "git-lfs pointer"),
    "a web page": (b"<!DOCTYPE html><html></html>", "HTML page"),
    "a pickle": (b"\x80\x04\x95", "pickle"),
    "zstd": (b"\x28\xb5\x2f\xfd123", "zstd"),
    "a PDF": (b"%PDF-1.7", "PDF"),
    "broken parquet": (b"PAR1\x15\x04" + bytes(range(128, 256)) + b"PAR1", "damaged Parquet"),
    "a cut gzip file": (gzip.compress(GOOD * 1000)[:-20], "damaged gzip"),
    "a JSON array that is cut off": (json.dumps([chat()] * 500, indent=1).encode()[:-60], "told apart"),
    "a fault inside a JSON array": (
        json.dumps([chat()] * 500, indent=1).encode().replace(b'"role": "user"', b'"role" "user"', 300)[:-1] + b"]",
        r"line \d+: .*told apart",
    ),
    "a table of an old Mac": (b"question,answer\ra?,b\rc?,d\r", "carriage returns alone"),
    "Python's dictionaries": ((str(chat()) + "\n").encode() * 3, r"json.dumps\(row\)"),
    "lines of different width": (
        b"question,answer\n" + b"a?,b\nc?,d,e\n" * 20,
        r"(?s)split at ',', have different numbers of cells: 21 with 2, 20 with 3.*quote cells",
    ),
    "Japanese in Shift-JIS": (
        "質問,答え\n荷物はどこですか,明日届きます\n".encode("shift_jis"),
        r"(?s)neither UTF-8 nor in a Western.*encoding=shift_jis",
    ),
    "Russian in cp1251": ("вопрос,ответ\nгде посылка,завтра\n".encode("cp1251"), r"neither UTF-8 nor in a Western"),
    "UTF-32": ("question,answer\na?,b\n".encode("utf-32"), "text in UTF-32"),
    "running text": (b"Dear diary,\nit was a dark and stormy night.\n", "text without columns"),
    "templated texts": (
        lines({"text": "<|im_start|>user\nHi<|im_end|>"}),
        r"conversation in one text, with marks such as <\|im_start\|>",
    ),
    "labels that are null": (lines({"text": "Hi", "label": None}), "a row without a label"),
    "texts alone": (lines({"text": "Once upon a time."}, {"text": "The end."}), "map: {user: text}"),
    "a ChatGPT export": (json.dumps([{"title": "t", "mapping": {}}]).encode(), "ChatGPT export"),
    "nested SQuAD": (json.dumps({"data": [{"title": "t", "paragraphs": []}]}).encode(), "SQuAD's nested form"),
    "several lists": (
        json.dumps({"a": [chat()], "b": [chat(), chat()]}).encode(),
        r"(?s)several lists: a \(1\), b \(2\).*fix: .*#b",
    ),
    "unknown columns": (lines({"x": 1, "y": 2}, {"x": 2, "y": 3}), "columns x, y"),
    "only images": (lines(chat(("user", [{"type": "image_url", "image_url": {}}]))), "images in a message"),
    "too many bad lines": (
        GOOD * 20 + b"{a\n{b\n",
        r"(?s)2 of 22 records cannot be read.*not JSON: quotes.*first: data.jsonl line 21.*max_quarantined=0",
    ),
    "several kinds of errors": (
        GOOD + b"{a\n\xff\n" + lines({"messages": []}),
        r"(?s)3 of 4 .*not JSON.*line 2.*not UTF-8.*line 3.*no messages.*line 4",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_no_data_is_refused_by_name(name: str, tmp_path: Path) -> None:
    content, words = REFUSED[name]
    with pytest.raises(DataError, match=words):
        read(tmp_path / "x", content)


VALUES = [
    None, 0, -3, 1.5, True, "", " ", "[", "[1]", "\ud800", "\0", [], [1], ["a"], [["a", "b"]], [None], {}, {"a": 1}, {"role": "user"}, [{"from": "human"}],
    {"type": "text"}, "A" * 300,
]  # fmt: skip


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every part of a JSON value."""
    yield place
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        yield from places(item, (*place, key))


def replaced(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return new
    value = value.copy()
    value[place[0]] = replaced(value[place[0]], place[1:], new)
    return value


def test_a_value_of_any_other_type_is_read_or_quarantined() -> None:
    draw = random.Random(0)
    for case in CASES.values():
        try:
            record = json.loads(case.content.splitlines()[0])
        except ValueError:
            continue
        reader = RowReader(Jsonl(**case.settings))
        for _ in range(25):
            broken = replaced(record, draw.choice(list(places(record))), draw.choice(VALUES))
            with suppress(BadRow):
                Row.model_validate_json(row_line(reader.read(Record(1, 0, broken), "file", "row")))


def test_a_folder_of_files_is_one_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "README.md").write_text("about")
    for number in range(2):
        (folder / f"part-{number}.jsonl").write_bytes(lines(chat(("user", f"q{number}"))))
    reader, ids = RowReader(Jsonl()), Ids()
    with quarantine_in(tmp_path) as quarantine:
        account = write_file_rows("path", str(folder), tmp_path / "rows", reader, quarantine, ids)
    assert account.kept == 2 and list(account.files) == ["part-0.jsonl", "part-1.jsonl"]
    (folder / "test.jsonl").write_bytes(GOOD)
    with quarantine_in(tmp_path) as quarantine, pytest.raises(DataError, match=r"splits: test.jsonl"):
        write_file_rows("path", str(folder), tmp_path / "rows", reader, quarantine, ids)


def test_a_bad_line_is_kept_with_its_place(tmp_path: Path) -> None:
    content = GOOD * 3 + '{"ü": 1, broken}\n'.encode() + GOOD
    (entry,) = read(tmp_path / "x", content).quarantined
    assert (entry["file"], entry["line"], entry["text"]) == ("data.jsonl", 4, '{"ü": 1, broken}')
    assert content[entry["offset"] :].startswith(entry["text"].encode())


def test_a_line_over_the_limit_is_refused_with_its_size(tmp_path: Path) -> None:
    long = lines(chat(("user", "x" * 1_500_000), ("assistant", "y")))
    (entry,) = read(tmp_path / "x", GOOD + long + GOOD, max_line_mb=1).quarantined
    assert entry["line"] == 2 and "2 MB, the limit is 1 MB" in entry["reason"] and len(entry["text"]) < 3000
    assert len(read(tmp_path / "y", GOOD + long + GOOD, max_line_mb=2).rows) == 3


def test_the_standard_library_reads_the_same_as_a_fast_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("orjson")
    content = (
        GOOD * 150 + lines(chat(("user", "ü\u2028"), ("assistant", "1e400"), score=1.5, big=10**25)) + b'{"a": [1, }\n'
    )
    fast = read(tmp_path / "x", content)
    monkeypatch.setattr("tasks.curate.reading.json_records._fast_parser", lambda: None)
    slow = read(tmp_path / "y", content)
    assert (fast.rows, fast.quarantined) == (slow.rows, slow.quarantined) and len(fast.quarantined) == 1
