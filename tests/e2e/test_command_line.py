"""What a user sees who mistypes: one message, what to type, a non-zero exit, no traceback."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.shared.store.keys import PROJECT
from tests.forked import run_module


def run(*arguments: str, module: str = "flows.compress") -> "subprocess.CompletedProcess[str]":
    return run_module(module, arguments, PROJECT, os.environ)


def test_help_names_commands_and_options() -> None:
    """In a new interpreter: the others are forked from one that has loaded Hydra."""
    command = [sys.executable, "-m", "flows.compress", "--help"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0
    assert "+recipe=support_bot" in done.stdout and re.search(r"prune: .*\bdepth\b", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "+recipe=support_bot"),
        (("+recipe=suport_bot",), "support_bot"),
        (("+recipe=support_bot", "quantize@steps.quick4=gptqq"), "gptq"),
        (("+recipe=support_bot", "+steps.slim.ratoi=0.4"), "did you mean steps.slim.ratio"),
        (("+recipe=support_bot", "+typo=1"), "no such key"),
        (("+recipe=support_bot", "steps.slim.ratio=3"), "steps.slim.ratio"),
        (("+recipe=support_bot", "model@models.teacher=path", "models.teacher.path=/nowhere"), "/nowhere"),
        (("+recipe=support_bot", "steps.quick4.inputs.model=corpus"), "is a corpus"),
        (("+recipe=support_bot", "steps.slim.inputs.model=student"), "cycle"),
    ],
)
def test_mistakes_are_explained(arguments: tuple[str, ...], words: str) -> None:
    done = run(*arguments, "dry_run=true") if arguments else run()
    assert done.returncode in {1, 2}
    assert words in done.stderr and "Traceback" not in done.stderr


def test_flags_and_overrides_in_any_order() -> None:
    done = run("+recipe=support_bot", "--cfg", "job")
    assert done.returncode == 0 and "name: support_bot" in done.stdout


@pytest.mark.needs_embedded
def test_the_plan_is_shown_as_table_and_tree_and_as_mermaid_on_request() -> None:
    done, graph = (run("+recipe=support_bot", f"dry_run={value}") for value in ("true", "graph"))
    assert done.returncode == graph.returncode == 0, done.stderr + graph.stderr
    for words in ("plan of support_bot: 14 steps", "prune/depth"):
        assert words in done.stdout and words in graph.stdout
    for words in ("graph LR", "corpus --> traces"):
        assert words in graph.stdout and words not in done.stdout


def test_an_unknown_step_lists_the_known() -> None:
    done = run("support_bot", "slimm", module="flows.stage")
    assert done.returncode == 2 and "slim" in done.stderr and "Traceback" not in done.stderr


def test_a_corpus_with_broken_lines_is_refused_with_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(b'{"messages": []}\nnot json\n\xff\xfe\n')
    from tasks.curate.jsonl import Jsonl
    from tasks.shared.errors import StillroomError
    from tasks.shared.technique import Inputs
    from tests.tiny_llama import empty_run

    out, step = empty_run(tmp_path)
    with pytest.raises(StillroomError, match="line 2"):
        Jsonl(
            train=str(tmp_path / "train.jsonl"),
            calibration=str(tmp_path / "train.jsonl"),
            test=str(tmp_path / "train.jsonl"),
        )(Inputs({}), out, step)
    assert not list(out.iterdir())
