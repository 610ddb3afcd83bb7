"""Time, memory and divergence of our quantizers beside llm-compressor by hand; GGUF types.

    python -m bench.quantize                       the embedded model; half an hour on two cores
    python -m bench.quantize --only gptq --busy 1  beside another busy program
    python -m bench.quantize --types               GGUF types alone

Both sides have the same rows, unpadded and one at a time, and the same settings; the library by hand has its own choice of threads.  "Rounding" is its
call alone.  "Step" is everything: for us with reading, saving, reloading and comparing with the source, by hand with reading and saving.  Each
measurement is a process of its own, and both sides take turns.  Divergence is that of the written folder on held-out rows.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.distillation_study import embedded_model
from bench.patience import Neighbors
from bench.sides import compared, say_machine
from bench.tables import console, show
from tasks.shared.engines.memory import peak_memory
from tasks.shared.model.calibration import calibration_ids, split_calibration
from tasks.shared.technique import Artifact, Inputs, Kind, StepRun

TECHNIQUES = ("rtn", "fp8", "gptq", "awq")
GROUP, GRID, TOKENS, HELD = 32, 6, 192, 8
TYPES = ("f16", "q8_0", "q6_k", "q5_0", "q4_1", "q4_0", "iq4_nl", "q3_k", "q2_k", "q2_0", "tq2_0")


def main() -> None:
    """Print a table per question."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder or GGUF file; default: the embedded model")
    parser.add_argument("--rows", type=int, default=32, help="calibration conversations")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, default=0, help="other busy programs")
    parser.add_argument("--only", nargs="+", default=list(TECHNIQUES), choices=TECHNIQUES)
    parser.add_argument("--types", action="store_true", help="time GGUF types alone")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        print(json.dumps(measured(**json.loads(given.job))))
        return
    with TemporaryDirectory(prefix="quantize-") as place:
        folder = Path(place)
        prepare(given.model or embedded_model(), folder, given.rows)
        if given.types:
            show("GGUF types", ("type", "written as", "seconds", "MB"), types(folder))
        else:
            show(
                f"{given.rows} rows, {given.rounds} rounds, {Neighbors(given.busy)}: medians, [smallest, largest]",
                ("technique", "side", "rounding, s", "step, s", "peak, GB", "KL, nats"),
                sides(folder, given.only, given.rows, given.rounds, Neighbors(given.busy)),
            )
    say_machine()


def prepare(source: Path, folder: Path, rows: int) -> None:
    """Write the model as a folder in bfloat16, and a corpus with so many calibration rows."""
    from tasks.curate.support import Support
    from tasks.shared.model.loading import load_model, load_tokenizer
    from tasks.shared.model.saving import save_model

    save_model(load_model(source), load_tokenizer(source, chat=False), folder / "model")
    for name in ("corpus", "scratch"):
        (folder / name).mkdir()
    corpus = Support(articles=12, train_size=48, calibration_size=rows + HELD, test_size=24)
    corpus(Inputs({}), folder / "corpus", StepRun("corpus", 0, folder / "scratch"))


def sides(
    folder: Path, techniques: Sequence[str], rows: int, rounds: int, neighbors: Neighbors
) -> Iterator[tuple[str, ...]]:
    """Yield a row per technique and side, and one with the ratio of ours to the library's."""
    for name in techniques:
        job = {"folder": str(folder), "technique": name, "rows": rows}
        for row in compared("bench.quantize", job, ("rounding", "step", "peak", "kl"), rounds, neighbors):
            console.print(name, *row)
            yield name, *row


def measured(folder: str, technique: str, side: str, rows: int) -> dict[str, float]:
    """Quantize once; return seconds, peak memory (GB) and divergence."""
    from tasks.shared.model.agreement import compare_logits, logits_of
    from tasks.shared.model.loading import load_model, load_tokenizer

    model, corpus = Path(folder) / "model", Path(folder) / "corpus"
    with TemporaryDirectory(dir=folder) as place:
        out, scratch = Path(place) / "out", Path(place) / "scratch"
        out.mkdir()
        scratch.mkdir()
        began = time.perf_counter()
        rounding = (ours if side == "ours" else by_hand)(technique, model, corpus, out, scratch, rows)
        step = time.perf_counter() - began
        peak = (peak_memory() or 0) / 1e9
        tokenizer = load_tokenizer(model, chat=False)
        held = calibration_ids(tokenizer, split_calibration(corpus, rows, HELD)[1], TOKENS)
        found = compare_logits(load_model(out), logits_of(load_model(model), held), held, str(out))
    return {"rounding": rounding, "step": step, "peak": peak, "kl": float(found["kl_to_source"])}


def ours(technique: str, model: Path, corpus: Path, out: Path, scratch: Path, rows: int) -> float:
    """Run the step; return the seconds of the library's call in it."""
    import tasks.quantize.llm_compressor as wrapper
    from tasks.quantize.awq import AWQ
    from tasks.quantize.fp8 import FP8
    from tasks.quantize.gptq import GPTQ
    from tasks.quantize.rtn import RTN

    steps: Mapping[str, Any] = {
        "rtn": RTN(group_size=GROUP, check_rows=HELD), "fp8": FP8(check_rows=HELD),
        "gptq": GPTQ(group_size=GROUP, calibration_rows=rows, check_rows=HELD, max_tokens=TOKENS),
        "awq": AWQ(group_size=GROUP, calibration_rows=rows, check_rows=HELD, max_tokens=TOKENS, grid=GRID),
    }  # fmt: skip
    plain, seconds = wrapper.run_oneshot, list[float]()

    def timed(*given: Any, **named: Any) -> None:
        began = time.perf_counter()
        plain(*given, **named)
        seconds.append(time.perf_counter() - began)

    wrapper.run_oneshot = timed
    inputs = {
        "model": (Artifact("model", Kind.MODEL, model),),
        "calibration": (Artifact("corpus", Kind.CORPUS, corpus),),
    }
    steps[technique](Inputs(inputs), out, StepRun(technique, 0, scratch))
    return sum(seconds)


def by_hand(technique: str, model: Path, corpus: Path, out: Path, _: Path, rows: int) -> float:
    """Call the library as its examples do; return the seconds of its call."""
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from torch.utils.data import DataLoader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tasks.quantize.llm_compressor import unpinned

    weights = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": GROUP}
    settings: dict[str, Any] = {
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }
    recipes: Mapping[str, Any] = {
        "rtn": lambda: QuantizationModifier(**settings),
        "fp8": lambda: QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=["lm_head"]),
        "gptq": lambda: GPTQModifier(**settings, dampening_frac=0.01, actorder="static"),
        "awq": lambda: [AWQModifier(n_grid=GRID), QuantizationModifier(**settings)],
    }
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    given: dict[str, Any] = {}
    if technique in ("gptq", "awq"):
        ids = calibration_ids(tokenizer, split_calibration(corpus, rows, HELD)[0], TOKENS)
        data = [{"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row)).long()} for row in ids]
        given = {"dataset": DataLoader(data, batch_size=None), "num_calibration_samples": len(data)}
    began = time.perf_counter()
    with unpinned():  # AWQ fails on a machine without an accelerator
        oneshot(model=loaded, tokenizer=tokenizer, recipe=recipes[technique](), **given)
    seconds = time.perf_counter() - began
    loaded.save_pretrained(out, save_compressed=True)
    tokenizer.save_pretrained(out)
    return seconds


def types(folder: Path) -> Iterator[tuple[str, ...]]:
    """Yield seconds and size of each GGUF type, with importance where it is used."""
    from tasks.export.gguf import UNWEIGHTED
    from tasks.export.importance import input_energy
    from tasks.shared.gguf.writer import write_gguf
    from tasks.shared.model.loading import load_model, load_tokenizer

    model = folder / "model"
    tokenizer = load_tokenizer(model, chat=False)
    ids = calibration_ids(tokenizer, split_calibration(folder / "corpus", HELD, HELD)[0], TOKENS)
    importance = input_energy(load_model(model), ids)
    for name in TYPES:
        file, began = folder / f"{name}.gguf", time.perf_counter()
        led = {} if name in UNWEIGHTED else importance
        written = write_gguf(model, file, name, "q8_0", importance=led, fallback=True)
        seconds = time.perf_counter() - began
        kinds = ", ".join(sorted({one.type for one in written} - {"q8_0"}) or ["q8_0"])
        yield name, kinds, f"{seconds:.1f}", f"{file.stat().st_size / 1e6:.1f}"
        file.unlink()


if __name__ == "__main__":
    main()
