"""Advise which techniques to use, in which order, and why.

python -m flows.advise                         the embedded model, this machine
python -m flows.advise models/my-1b --data data/chats.jsonl --size 0.6
python -m flows.advise 8B --hardware gpu --memory 16 --streams 8 --context 4096
python -m flows.advise my-1b --data chats.jsonl --write my_conf/recipe/my.yaml

Every rule is shown with its source and the figure measured here. Nothing is
changed; --write writes a recipe with the techniques that are advised.
"""

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flows.console import exit_codes
from flows.console.options import Parser, number
from flows.console.terminal import prepare_terminal
from flows.looking.options import add_reader_options
from tasks.shared.errors import ConfigError, StillroomError

if TYPE_CHECKING:
    from flows.advising.data_at_hand import Data
    from flows.advising.model_at_hand import ModelAtHand
    from flows.advising.precisions import Hardware
    from flows.advising.rules import Rule
    from flows.advising.situation import Facts, Situation

log = logging.getLogger("stillroom")
GIGA = 1e9


def advise(options: argparse.Namespace, command: str) -> None:
    """Print sizes by precision and the rules that apply; write a recipe if asked.

    command: as typed.  Raises StillroomError.
    """
    from rich.console import Console

    from flows.advising import screens
    from flows.advising.data_at_hand import look_at, rows_typed
    from flows.advising.precisions import forms
    from flows.advising.recipe import merge_steps
    from flows.advising.rule_table import RULES
    from flows.advising.rules import apply, refusals
    from flows.advising.situation import find_facts
    from flows.looking.starter import new_name, save_recipe
    from flows.looking.tables import line
    from flows.planning.catalog import catalog

    name = new_name(options.write) if options.write else ""
    techniques = {f"{entry.stage}/{entry.name}": entry for entry in catalog()}
    data = look_at(options) if options.data else rows_typed(options)
    known = situation(options, data)
    facts = find_facts(known, techniques)
    advice = apply(RULES, facts, techniques, refusals(RULES, known.model.config or {}, techniques))
    console = Console()
    screens.show_situation(console, known, data.line)
    screens.show_forms(console, known, forms(known.model.size, known.hardware, techniques))
    screens.show_advice(console, advice, facts)
    console.print()
    screens.show_steps(console, *merge_steps(advice.do, facts, data.training))
    if name:
        save_recipe(options.write, written_recipe(name, known.model, data, advice.do, facts, options.margin / 100))
        line(console, "written", str(options.write))
    for step in screens.next_steps(options.write, name, command):
        line(console, "next", step, whole=True)


def written_recipe(
    name: str, model: "ModelAtHand", data: "Data", rules: "Sequence[Rule]", facts: "Facts", margin: float
) -> str:
    """Text of a recipe that the planner accepts.  Raises StillroomError."""
    from flows.advising.model_at_hand import EMBEDDED
    from flows.advising.recipe import Parts, check_recipe, recipe_text
    from tasks.shared.model.sizes import weight_files

    if not model.embedded and (model.path is None or not weight_files(model.path)):
        got = f"{model.label}, which has no weights here"
        raise ConfigError("--write", got, "a model's folder with weights, or a .gguf file", "give it as MODEL")
    if not data.answered:
        fix = "let a teacher answer them first (docs/teacher.md), then advise on the answered rows"
        raise ConfigError(
            "--write", "rows without answers, by which nothing can be trained or judged", "answered rows", fix
        )
    parts = Parts(
        name=name,
        comment=f"Written by flows.advise for {model.label} and {data.names}: a start for your own recipe.",
        model=(EMBEDDED, {}) if model.embedded else ("path", {"path": str(model.path)}),
        corpus=data.corpus,
        training=data.training,
        measures=data.measures,
        margin=margin,
    )
    text = recipe_text(rules, facts, parts)
    check_recipe(name, text)
    return text


def situation(options: argparse.Namespace, data: "Data") -> "Situation":
    """Return model, machine, needs and data as one.  Raises StillroomError."""
    import psutil

    from flows.advising.model_at_hand import find_model
    from flows.advising.situation import Situation
    from flows.planning.config import Runtime
    from flows.planning.estimate import FLOPS_GPU, flops_per_core
    from flows.planning.gpus import gpu_memory, may_use_gpu
    from tasks.shared.technique import Compute

    here, total = may_use_gpu("auto"), float(psutil.virtual_memory().total)
    on_gpu = gpu_memory() if here else 0.0
    hardware: Hardware = options.hardware or ("gpu" if here else "cpu")
    if hardware != "cpu" and not options.memory and not on_gpu:
        raise ConfigError(
            "--memory", "not given, and this machine has no GPU to ask", "the GPU's memory, GB", "--memory 24"
        )
    cores = Runtime().cores
    return Situation(
        model=find_model(options.model),
        hardware=hardware,
        memory=GIGA * options.memory if options.memory else total if hardware == "cpu" else on_gpu,
        compute=Compute(cores, "cuda" if here else "cpu"),
        flops=FLOPS_GPU if here else flops_per_core() * cores,
        machine_memory=on_gpu if here else total,
        context=options.context,
        streams=options.streams,
        size_limit=GIGA * options.size if options.size else None,
        faster=options.faster,
        bandwidth=GIGA * options.bandwidth if options.bandwidth else None,
        margin=options.margin / 100,
        rows=data.rows,
        items=data.items,
        answered=data.answered,
        task=data.task,
        tokens=data.tokens,
        hours=options.hours,
    )


def parser() -> Parser:
    """Return the command line."""
    made = Parser(
        prog="python -m flows.advise",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "model", nargs="?", default="", metavar="MODEL",
        help="a folder (weights, or config.json alone), a .gguf file, or a number of parameters such as 8B; default: the embedded model",
    )  # fmt: skip
    served = made.add_argument_group("where it will be served")
    served.add_argument(
        "--hardware",
        choices=("cpu", "gpu", "fp8-gpu"),
        help="fp8-gpu: with FP8 units (Ada, Hopper, later); default: this machine's",
    )
    served.add_argument(
        "--memory",
        type=number(0.01, 1e5),
        metavar="GB",
        help="memory for weights and KV cache; default: this machine's",
    )
    served.add_argument(
        "--streams", type=number(1, 1e5, whole=True), default=1, metavar="N", help="answers at once (default: 1)"
    )
    served.add_argument(
        "--context",
        type=number(1, 1e8, whole=True),
        default=2048,
        metavar="N",
        help="tokens of a stream (default: 2048)",
    )
    served.add_argument(
        "--bandwidth", type=number(0.1, 1e5), metavar="GB/S", help="of the memory; shows the speed that it allows"
    )
    need = made.add_argument_group("what is needed")
    need.add_argument("--size", type=number(0.001, 1e5), metavar="GB", help="limit of the weights on disk")
    need.add_argument(
        "--faster",
        type=number(0.1, 100),
        default=1.0,
        metavar="X",
        help="decoding speed over the model in 16 bits (default: 1)",
    )
    need.add_argument(
        "--margin",
        type=number(0.1, 99),
        default=5.0,
        metavar="POINTS",
        help="quality that may be lost, percentage points (default: 5)",
    )
    held = made.add_argument_group("data and training budget")
    held.add_argument("--data", default="", metavar="FILE", help="your conversations, as flows.look reads them")
    held.add_argument("--rows", type=number(0, 1e9, whole=True), metavar="N", help="training rows, without a file")
    held.add_argument("--items", type=number(0, 1e9, whole=True), metavar="N", help="test items, without a file")
    held.add_argument("--no-answers", action="store_true", help="these rows are questions alone")
    held.add_argument(
        "--hours",
        type=number(0, 1e5),
        metavar="H",
        help="that a training may take on this machine; 0: none (default: no limit)",
    )
    add_reader_options(held)
    made.add_argument("--write", type=Path, metavar="FILE", help="write a recipe to start from")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.  Exit codes: 0 done, 2 an error."""
    prepare_terminal()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    typed = sys.argv[1:] if arguments is None else list(arguments)
    options = parser().parse_args(typed)
    try:
        advise(options, shlex.join(["python", "-m", "flows.advise", *typed]))
    except StillroomError as error:
        log.error("%s", error)
        return exit_codes.USER
    except KeyboardInterrupt:
        return exit_codes.interrupted()
    return 0


if __name__ == "__main__":
    sys.exit(main())
