"""Everything known before anything is compressed, and the facts that rules ask about."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flows.advising.model_at_hand import ModelAtHand, cache_bytes
from flows.advising.precisions import EIGHT, FOUR, SIXTEEN, Hardware, Precision, form_of
from flows.looking.figures import ALPHA, FLIPS, POWER
from flows.planning.catalog import Entry
from tasks.evaluate.verdict.courses import Rules, items_needed, smallest_margin
from tasks.shared.forecast import LONG_ROW_TOKENS, ROW_TOKENS, SAVED_BYTES, Forecasts, Rows, Size, Workload
from tasks.shared.model.families import is_mixture
from tasks.shared.model.widths import DIVISORS, GROUP_SIZES
from tasks.shared.technique import ChecksFamily, Compute
from tasks.shared.text.numbers import byte_size, duration, parameters, percent, points, times

Value = float | str | bool
Facts = Mapping[str, Value | None]
FILLED = 0.9
"""Share of a machine's memory that weights and KV cache may take; the rest is for the engine."""
EPOCHS = 3
STUDENT_FLIPS = 0.2
"""Share of answers that a student changes: 17 % of the labels and 22 % of the facts (docs/log, support_bot with articles)."""
SPEED_IN_4_BITS: Mapping[Hardware, float] = {"cpu": 1.7, "gpu": 1.6, "fp8-gpu": 1.6}
"""Decoding speed of one stream over 16 bits: measured in llama.cpp (docs/log, support_bot that learns to read), and published for an H100 (rules)."""
OUTER = 0.15
"""Share of embedding and head from which trimming the vocabulary is advised."""
STEP, MOST_DROPPED = 0.05, 0.6
"""Steps of the share of layers to drop, and the largest share that is advised."""


@dataclass(frozen=True, kw_only=True)
class Situation:
    """Model, hardware, needs, data and budget.

    memory: of the serving machine, bytes.  size_limit: of the weights on disk, bytes.
    faster: wanted decoding speed over the model in 16 bits.  bandwidth: of the serving machine's memory, bytes a second.
    margin: quality that may be lost, as a share.
    rows, items: conversations for training, and for the test.  answered: they hold answers.  task: type of the task.
    tokens: of the mean conversation, and of the longest.
    hours: that a training may take on this machine.  compute, flops, machine_memory: of this machine, which trains.
    """

    model: ModelAtHand
    hardware: Hardware
    memory: float
    compute: Compute
    flops: float
    machine_memory: float
    context: int = 2048
    streams: int = 1
    size_limit: float | None = None
    faster: float = 1.0
    bandwidth: float | None = None
    margin: float = 0.05
    rows: int = 0
    items: int = 0
    answered: bool = True
    task: str = "chat"
    tokens: tuple[int, int] = (ROW_TOKENS, LONG_ROW_TOKENS)
    hours: float | None = None

    def room(self) -> float:
        """Bytes that the weights may take: on disk, and in the memory that the KV cache leaves."""
        left = FILLED * self.memory - (cache_bytes(self.model, self.context, self.streams) or 0.0)
        return max(1.0, min(left, self.size_limit or math.inf))


def most_tokens(known: Situation, weights: float) -> float | None:
    """Tokens a second of each stream that memory bandwidth allows; None if a size is unknown.

    weights: bytes.  Every step reads all of them and the cache of all streams, at full context; arithmetic comes on top.  None for a
    mixture of experts too, which leaves weights unread.
    """
    cache = cache_bytes(known.model, known.context, known.streams)
    if known.bandwidth is None or cache is None or is_mixture(known.model.config or {}):
        return None
    return known.bandwidth / (weights + cache)


@dataclass(frozen=True)
class Asked:
    """A fact in words, its format, and the option that gives it."""

    words: str
    format: Callable[[Any], str] = str
    option: str = ""


ASKED: Mapping[str, Asked] = {
    "hardware": Asked("hardware", str, "--hardware"),
    "parameters": Asked("parameters", parameters, "MODEL"),
    "grid": Asked("type of the model's file", str, "MODEL"),
    "outer": Asked("share of embedding and head", lambda value: percent(value, 0), "MODEL as a folder or file"),
    "blocks": Asked("matrices whose rows are multiples of 256", str, "MODEL as a folder or file"),
    "blocks32": Asked("rows are multiples of 32", str, "MODEL as a folder or file"),
    "cache": Asked("KV cache", byte_size, "MODEL as a folder or file"),
    "usable": Asked("memory for weights and KV cache", byte_size, "--memory"),
    "packs": Asked("GPTQ takes this family", str, "MODEL as a folder or file"),
    "room": Asked("room for the weights", byte_size, "--size or --memory"),
    "bytes16": Asked("weights in 16 bits", byte_size, "MODEL"),
    "bytes8": Asked("weights in 8 bits", byte_size, "MODEL"),
    "bytes4": Asked("weights in 4 bits", byte_size, "MODEL"),
    "fit16": Asked("room over the weights in 16 bits", times, "--size or --memory"),
    "fit8": Asked("room over the weights in 8 bits", times, "--size or --memory"),
    "fit4": Asked("room over the weights in 4 bits", times, "--size or --memory"),
    "enough": Asked("4 bits are small and fast enough", str, "--size or --faster"),
    "faster": Asked("speed wanted over 16 bits", times, "--faster"),
    "keep": Asked("share of the 4-bit weights that may remain", lambda value: percent(value, 0), "--size or --faster"),
    "trims": Asked("tokens beyond those that prune/vocabulary keeps", str, "MODEL as a folder or file"),
    "speed4": Asked("usual speed in 4 bits", times, "--hardware"),
    "drop": Asked("share of layers to drop", lambda value: percent(value, 0), "MODEL as a folder or file"),
    "streams": Asked("streams at once", str, "--streams"),
    "margin": Asked("loss allowed, points", lambda value: f"{points(value, signed=False)} points", "--margin"),
    "items": Asked("test items", str, "--data or --items"),
    "decidable": Asked("smallest decidable margin", lambda value: f"{points(value, signed=False)} points", "--data or --items"),
    "items_4_bits": Asked("items that decide 4 bits", lambda value: f"{value:,}", "--margin"),
    "items_student": Asked("items that decide a student", lambda value: f"{value:,}", "--margin"),
    "items_cascade": Asked("items that certify a cascade", str, "--margin"),
    "rows": Asked("training rows", lambda value: f"{value:,}", "--data or --rows"),
    "answered": Asked("rows with answers", str, "--data or --no-answers"),
    "task": Asked("type of the task", str, "--data or --task"),
    "epochs": Asked("epochs that the budget allows", str, "--hours"),
    "training": Asked("time of the training", lambda value: duration(value, 2), "--hours"),
    "budget": Asked("training budget", lambda value: duration(value, 2), "--hours"),
    "training_memory": Asked("memory of the training", lambda value: byte_size(value, 2), ""),
    "machine_memory": Asked("memory of this machine", lambda value: byte_size(value, 2), ""),
}  # fmt: skip
"""Every fact that a rule may ask about or name in its text."""


def find_facts(known: Situation, techniques: Mapping[str, Entry]) -> dict[str, Value | None]:
    """Return every fact of `ASKED`; None where it is not known."""
    size, room = known.model.size, known.room()

    def weights(precision: Precision, of: Size = size) -> float | None:
        form = form_of(of, precision, techniques)
        return form.bytes if form else None

    sixteen, eight, four = (weights(one) for one in (SIXTEEN, EIGHT[known.hardware], FOUR[known.hardware]))
    keep = min(1.0, room / four if four else 1.0, SPEED_IN_4_BITS[known.hardware] / known.faster)
    enough = keep >= 1.0
    widths = (size.shape.width, size.shape.query, size.shape.feed_forward)
    found: dict[str, Value | None] = {
        "hardware": known.hardware,
        "parameters": size.parameters,
        "grid": known.model.grid,
        "outer": size.outer / size.parameters if size.outer else None,
        "blocks": all(width % DIVISORS["q4_k"] == 0 for width in widths) if size.shape.width else None,
        "blocks32": all(width % GROUP_SIZES[-1] == 0 for width in widths),
        "cache": cache_bytes(known.model, known.context, known.streams),
        "usable": FILLED * known.memory,
        "packs": _packs(known, techniques),
        "room": room,
        "faster": known.faster,
        "keep": keep,
        "enough": enough,
        "speed4": SPEED_IN_4_BITS[known.hardware],
        "trims": _trims(size, techniques),
        "drop": _layers_to_drop(known, 1.0 if enough else keep, techniques),
        "streams": known.streams,
        "margin": known.margin,
        "items": known.items,
        "decidable": smallest_margin(known.items, FLIPS, FLIPS, ALPHA, POWER) if known.items > 1 else 1.0,
        "items_4_bits": items_needed(Rules(known.margin, FLIPS, ALPHA), POWER),
        "items_student": items_needed(Rules(known.margin, FLIPS, ALPHA), POWER, STUDENT_FLIPS),
        "items_cascade": math.ceil(math.log(ALPHA) / math.log(1.0 - known.margin)),
        "rows": known.rows,
        "answered": known.answered,
        "task": known.task,
        "machine_memory": known.machine_memory,
    }
    for bits, size_of_form in (("16", sixteen), ("8", eight), ("4", four)):
        found[f"bytes{bits}"] = size_of_form
        found[f"fit{bits}"] = room / size_of_form if size_of_form else None
    return found | _training(known, techniques, trainings=1 if enough else 2)


def _packs(known: Situation, techniques: Mapping[str, Entry]) -> bool:
    """Return True if GPTQ takes the model's family.

    A model without a configuration is taken for one of a family that it takes.
    """
    technique = techniques["quantize/gptq_levels"].technique() if "quantize/gptq_levels" in techniques else None
    return isinstance(technique, ChecksFamily) and technique.refuses(known.model.config or {}) is None


def _trims(size: Size, techniques: Mapping[str, Entry]) -> bool | None:
    """Return True for more tokens than `prune/vocabulary` keeps; None if they are not known."""
    entry = techniques.get("prune/vocabulary")
    return size.shape.vocabulary > entry.technique().size if entry and size.shape.vocabulary else None


def trimmed(size: Size, techniques: Mapping[str, Entry]) -> Size:
    """Return the size with the number of tokens that `prune/vocabulary` keeps by default."""
    tokens = techniques["prune/vocabulary"].technique().size
    outer = size.outer * tokens / size.shape.vocabulary
    parameters = size.parameters - size.outer + outer
    return Size(parameters, SAVED_BYTES * parameters, outer, replace(size.shape, vocabulary=tokens))


def _layers_to_drop(known: Situation, keep: float, techniques: Mapping[str, Entry]) -> float | None:
    """Smallest share of layers without which the model in 4 bits takes `keep` of its bytes.

    The vocabulary is trimmed first where the rules advise that.  0.0 if all layers may stay, 1.0 if more than `MOST_DROPPED` would have to
    go; None if the shape is not known.
    """
    size = known.model.size
    whole = form_of(size, FOUR[known.hardware], techniques)
    if not size.shape.layers or whole is None:
        return None
    if keep < 1.0 and _trims(size, techniques) and size.outer >= OUTER * size.parameters:
        size = trimmed(size, techniques)
    for step in range(round(MOST_DROPPED / STEP) + 1):
        share = round(step * STEP, 2)
        left = form_of(
            size.with_layers(size.shape.layers - round(share * size.shape.layers)), FOUR[known.hardware], techniques
        )
        if left is not None and left.bytes <= keep * whole.bytes:
            return share
    return 1.0


def _training(known: Situation, techniques: Mapping[str, Entry], trainings: int) -> dict[str, Value | None]:
    """Facts of a fine-tuning on this machine.

    epochs: as many as the budget allows, at most `EPOCHS`.  trainings: that share the budget; a student takes as long as its teacher.
    """
    facts: dict[str, Value | None] = dict.fromkeys(("training", "training_memory", "budget"))
    facts["epochs"] = None if known.hours is None else 0
    entry = techniques.get("distill/sft")
    if known.hours is not None:
        facts["budget"] = 3600.0 * known.hours
    if entry is None or not known.rows:
        return facts | {"epochs": 0}
    mean, longest = known.tokens
    rows = Rows(known.rows, max(1, known.items), longest, mean)
    work = Workload({"model": (known.model.size,)}, rows, known.compute, known.flops)

    def forecast(epochs: int) -> Any:
        technique = entry.technique(epochs=epochs)
        assert isinstance(technique, Forecasts)
        return technique.forecast(work)

    whole = forecast(EPOCHS)
    fitting = [
        count
        for count in range(1, EPOCHS + 1)
        if known.hours is None or trainings * forecast(count).seconds <= 3600 * known.hours
    ]
    place = whole.gpu_memory if known.compute.device == "cuda" else whole.memory
    return facts | {"training": whole.seconds, "training_memory": place, "epochs": max(fitting, default=0)}
