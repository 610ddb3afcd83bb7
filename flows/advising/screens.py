"""The advice as tables and paragraphs that fit 80 columns."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.advising.model_at_hand import cache_bytes
from flows.advising.precisions import Form, Hardware
from flows.advising.rules import NOT_MEASURED, Advice, Rule, Step, filled
from flows.advising.situation import FILLED, Facts, Situation, most_tokens
from flows.looking.tables import line
from tasks.shared.text.numbers import byte_size, duration, parameters, percent, quantity

WIDE = 90
"""Columns of a terminal from which the table of sizes has all of its columns."""
WIDEST = 110
"""Columns beyond which lines of text are hard to read."""
LOG_PAGE = "docs/LOG.md"
WORDS: Mapping[Hardware, str] = {"cpu": "CPU", "gpu": "GPU", "fp8-gpu": "GPU with FP8"}


def show_situation(console: Console, known: Situation, data: str) -> None:
    """Print what the advice is about.  data: where the rows come from."""
    size = known.model.size
    parts = [f"{parameters(round(size.parameters))} parameters"]
    if size.outer:
        parts.append(f"{percent(size.outer / size.parameters, 0)} of them in embedding and head")
    if size.shape.layers:
        parts.append(f"{size.shape.layers} layers")
    line(console, "model", f"{known.model.label}: {', '.join(parts)}")
    cache = cache_bytes(known.model, known.context, known.streams)
    streams = f"{known.streams} stream{'s' * (known.streams != 1)} of {known.context:,} tokens"
    held = "unknown, and left out of what fits (give the model's folder or file)" if cache is None else byte_size(cache)
    line(
        console, "serving", f"{WORDS[known.hardware]}, {byte_size(known.memory)} of memory; {streams}; KV cache {held}"
    )
    limit = f"; at most {byte_size(known.size_limit)} on disk" if known.size_limit else ""
    line(
        console, "need", f"loss of at most {100 * known.margin:g} points; {known.faster:g}x the speed of 16 bits{limit}"
    )
    line(console, "data", data)
    budget = "not limited" if known.hours is None else duration(3600 * known.hours, 2)
    line(console, "budget", f"training time on this machine: {budget}")


def show_forms(console: Console, known: Situation, found: Sequence[Form]) -> None:
    """Print weights, and weights with KV cache, by precision."""
    cache, sixteen = cache_bytes(known.model, known.context, known.streams), max(form.bytes for form in found)
    caption = f"bits: per parameter, scales and other types included.  fits: weights and cache into {FILLED:.0%} of the memory, weights into --size"
    speed = ["tok/s"] if known.bandwidth else []
    smaller = ["smaller"] if not speed or console.width >= WIDE else []
    if speed:
        caption += ".  tok/s: of a stream, at most what the bandwidth allows at full context"
    table = Table(title=f"the model by precision, on a {WORDS[known.hardware]}", caption=caption)
    for name in ("form", "made by", "bits", "weights", "+ cache", *smaller, *speed, "fits"):
        table.add_column(name, justify="left" if name in {"form", "made by"} else "right")
    for form in found:
        table.add_row(
            form.precision.name,
            form.precision.technique,
            f"{form.bits:.2f}",
            byte_size(form.bytes),
            "-" if cache is None else byte_size(form.bytes + cache),
            *([f"{sixteen / form.bytes:.1f}x"] if smaller else []),
            *([quantity(most_tokens(known, form.bytes)) if most_tokens(known, form.bytes) else "-"] if speed else []),
            "yes" if form.bytes <= known.room() else "no",
        )
    console.print(table)


def show_advice(console: Console, advice: Advice, facts: Facts) -> None:
    """Print what to do, what to avoid, and what the project lacks."""
    parts = (
        ("what to do, in this order", advice.do, True),
        ("what to leave out", advice.avoid, True),
        ("worth knowing, but not in this project", advice.absent, False),
    )
    for title, rules, runs in parts:
        if rules:
            heading(console, title)
        for number, rule in enumerate(rules, 1):
            show_rule(console, f"{number}." if rules is advice.do else "-", rule, facts, runs)
    show_list(
        console,
        "not for this family of models",
        [
            f"{filled(rule.title, facts)}  [{rule.technique}]: {why.reason}; instead: {why.instead}"
            for rule, why in advice.refused
        ],
    )
    show_list(
        console,
        "not decided, because a fact is missing",
        [f"{filled(rule.title, facts)}: give {', '.join(options)}" for rule, options in advice.open],
    )


def show_list(console: Console, title: str, items: Sequence[str]) -> None:
    """Print a heading and a paragraph for each item; nothing without items."""
    if items:
        heading(console, title)
    for text in items:
        paragraph(console, "-", text)


def heading(console: Console, text: str) -> None:
    """Print a heading over a part of the advice."""
    console.print()
    console.print(Text(text, style="bold"))


def show_rule(console: Console, mark: str, rule: Rule, facts: Facts, runs: bool) -> None:
    """Print a rule: advice, reason, source, and the figure measured here with its entry.

    runs: name its technique, which the project has.
    """
    console.print()
    made = f"  [{rule.technique}]" if rule.technique and runs else ""
    paragraph(console, mark, filled(rule.title, facts) + made, style="bold")
    paragraph(console, "", filled(rule.why, facts))
    paragraph(console, "", f"source: {rule.source}", style="dim")
    entry = f" ({LOG_PAGE}: {rule.entry})" if rule.entry else ""
    paragraph(
        console,
        "",
        rule.measured if rule.measured == NOT_MEASURED else f"measured: {rule.measured}{entry}",
        style="dim",
    )


def paragraph(console: Console, mark: str, text: str, style: str = "") -> None:
    """Print a paragraph, indented below its mark."""
    width = min(console.width, WIDEST)
    for row in textwrap.wrap(
        text, width, initial_indent=f"{mark:<4}", subsequent_indent="    ", break_on_hyphens=False
    ):
        console.print(Text(row, style=style), soft_wrap=True)


def next_steps(written: Path | None, name: str, command: str) -> Iterator[str]:
    """Yield the commands to type next.  command: this one, as typed."""
    if written is None:
        yield f"{command} --write my_conf/recipe/my.yaml"
    elif written.parent.name == "recipe":
        yield f"python -m flows.compress --config-dir {written.parent.parent} +recipe={name} dry_run=true"
    else:
        yield f"move {written} to a folder recipe/, as my_conf/recipe/{name}.yaml, then:"
        yield f"python -m flows.compress --config-dir my_conf +recipe={name} dry_run=true"


def show_steps(console: Console, steps: Sequence[Step], baseline: str) -> None:
    """Print the steps of the recipe that follows from the advice, and what its verdict compares."""
    candidates = [step.name for step in steps if step.candidate]
    if not candidates:
        line(console, "steps", "none of the advice leads to a smaller model")
        return
    made = ", ".join(f"{step.name} ({step.technique})" for step in steps)
    line(console, "steps", f"{made}; then a verdict on {' and '.join(candidates)} against {baseline}")
