"""Runtime cost of serving: latency, throughput, load time, memory, energy.

Dense model folders are converted to f16 GGUF and served by llama.cpp like the GGUF candidates, so that formats compare in one engine.
Compressed-tensors folders, which vLLM would serve, run in transformers if vLLM is not available, and the figures say so.
Every repeat is a fresh process with its own memory peak and load time.  Repeats are interleaved over the models (A B C A B C), and
timings are never cached.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar, get_args

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.evaluate.models_under_test.forecast import forecast_evaluation
from tasks.evaluate.models_under_test.isolated_runs import make_summary
from tasks.evaluate.models_under_test.model_under_test import (
    MODEL_PORTS,
    ModelUnderTest,
    Prompt,
    list_models,
    reference_prompts,
)
from tasks.evaluate.timing.energy import Source, check_source, open_meter
from tasks.evaluate.timing.engines import Effort, Probe, take_sample
from tasks.evaluate.timing.probes import Choice, make_probe
from tasks.evaluate.timing.rounds import (
    Timed,
    named_by_engine,
    ratios,
    samples_in_engine,
    slower_notes,
    summarize,
    time_in_rounds,
    timings_of,
)
from tasks.shared.engines.engine import EngineName
from tasks.shared.engines.registry import Needs
from tasks.shared.engines.vllm_server import find_vllm, vllm_version
from tasks.shared.errors import ConfigError, ModelError
from tasks.shared.forecast import GENERATION_COST, Forecast, Workload
from tasks.shared.formats.articles import read_articles
from tasks.shared.formats.records import Figure
from tasks.shared.formats.rows import Row, read_rows
from tasks.shared.formats.scores import EvaluationSummary, write_scores
from tasks.shared.formats.tasks import read_tasks
from tasks.shared.isolation import Failure
from tasks.shared.items import Items, ItemSources
from tasks.shared.model.sizes import weight_bytes
from tasks.shared.store.lineage import made_from
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun, Upstream

Streams = Annotated[int, Field(ge=2, le=256)]
BUSY = 0.1
"""Share of the processor that other programs may use before a note mentions it."""
STANDARD_PROMPT = "How long do I have to send back a kettle that I bought last week, and who pays for the postage?"


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Runtime:
    """Timing of every model in the engine that would serve it, with speed ratios round by round.

    The range of n repeats contains the median with probability 1 - 2^(1-n) (sign test interval): 75 % for three.
    """

    engines: Annotated[tuple[Choice, ...], Field(min_length=1)] = ("auto",)
    """Engines to time each model in; figures from the first one that can run it keep their plain names.  auto: llama.cpp for GGUF files
    and dense folders (as f16 GGUF), transformers for compressed folders."""
    tokens: Annotated[int, Field(ge=2)] = 24
    """Length of a timed answer, tokens."""
    batch_sizes: tuple[Streams, ...] = (8,)
    """Numbers of streams decoded together, in addition to a single stream."""
    warm_up_tokens: Annotated[int, Field(ge=2)] = 4
    """Length of the warm-up answer before each timed one, tokens; not timed."""
    repeats: Annotated[int, Field(ge=1)] = 3
    """Rounds over all models, each in a fresh process."""
    context: Annotated[int, Field(ge=64)] = 1024
    """Maximum tokens of prompt and answer per stream; llama.cpp reserves memory for them."""
    prompt: Annotated[str, Field(min_length=1)] = STANDARD_PROMPT
    """Prompt where no corpus is given; with one, its test question of median length is used."""
    time_reference: bool = False
    """Time the reference too."""
    energy: Source = "counters"
    """Source of energy figures: the machine's counters (RAPL, and NVML for a GPU), codecarbon if installed, which estimates what it cannot
    read, or off."""
    vllm_command: str = ""
    """The `vllm` executable of the environment with vLLM, for engines: [vllm]."""
    limit_s: Annotated[float, Field(gt=0)] = 300.0
    """Time limit to load a model and between outputs, seconds (in transformers: for a whole repeat); beyond it, the model counts as failed."""

    spec: ClassVar[Spec] = Spec(
        summary="Load time, first token, decoding speed, memory and energy in llama.cpp, transformers and vLLM",
        ports={**MODEL_PORTS, "data": Port((Kind.CORPUS,), optional=True, wire="recipe")},
        produces=Kind.SCORES,
        libraries=("torch", "transformers", "tokenizers", "compressed-tensors", "auto-round", "gguf", "xllamacpp", "scipy"),
        exclusive=True,
        device="accelerator",
    )  # fmt: skip

    def plan_problems(
        self, where: str, inputs: Mapping[str, tuple[str, ...]], upstream: Mapping[str, Upstream]
    ) -> Iterator[ConfigError]:
        """Yield an error for a requested engine or energy meter that is missing."""
        try:
            self._check_tools()
        except ConfigError as error:
            yield ConfigError(f"{where}.{error.where}", error.got, error.wanted, error.fix)

    def engine_needs(self) -> Needs:
        """One of the chosen engines for the baseline.

        It is timed as stored, or as a GGUF file converted from a dense folder.
        """
        engines = tuple(name for name in get_args(EngineName) if name in self.engines)
        return Needs(
            engines=() if "auto" in self.engines else engines, dequantized=False, as_gguf=True, ports=("baseline",)
        )

    def _check_tools(self) -> None:
        if "vllm" in self.engines:
            find_vllm(self.vllm_command)
        check_source(self.energy)

    def forecast(self, work: Workload) -> Forecast:
        """Forecast the timing: per round and engine, load a model and time each number of streams."""
        rounds, answers = self.repeats * len(self.engines), 1 + sum(self.batch_sizes)
        return forecast_evaluation(
            work, rounds * answers * (self.tokens + self.warm_up_tokens) * GENERATION_COST, loads=rounds
        )

    def count_items(self, sources: ItemSources) -> dict[str, Items]:
        """Return no items: speeds are figures of whole models."""
        return {}

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Time all models; write scores.json, and an items.jsonl without items.

        A candidate that cannot be timed is marked as failed.  Raises ModelError if that is the baseline, ConfigError for a missing engine
        or energy meter.
        """
        self._check_tools()
        meter = open_meter(self.energy, run.compute.device)
        models = [model for model in list_models(inputs) if model.role != "reference" or self.time_reference]
        baseline, prompts = models[0].name, self._conversations(models, inputs)
        notes = [*self._general_notes(prompts[baseline], meter is None, run.compute.device), *busy_notes()]
        plans = {model.name: self._probes(model, prompts[model.name], run.scratch) for model in models}
        if not plans[baseline][0]:
            raise ModelError(f"baseline {baseline}", " ".join(plans[baseline][1]), "a model that can be timed")
        probes = [probe for found, _ in plans.values() for probe in found]
        probes.sort(
            key=lambda probe: get_args(EngineName).index(probe.engine)
        )  # models compared with each other are timed next to each other
        timed = time_in_rounds(probes, self._effort(run), self.repeats, baseline, take_sample)
        results = {name: failure_of(name, timed, own) for name, (_, own) in plans.items()}
        notes += [note for _, own in plans.values() for note in own]
        summary = make_summary(models, results, {}, run, self.spec.libraries, notes)
        if "vllm" in self.engines:
            summary = summary.model_copy(
                update={"versions": {**summary.versions, "vllm": vllm_version(self.vllm_command)}}
            )
        summary = with_figures(summary, models, timed, parents_of(models, inputs))
        write_scores(out, summary, [])
        return flat_metrics(summary)

    def _effort(self, run: StepRun) -> Effort:
        return Effort(
            self.tokens, self.warm_up_tokens, self.batch_sizes, self.context, self.limit_s, self.energy, self.vllm_command,
            run.compute.threads, run.compute.device,
        )  # fmt: skip

    def _conversations(self, models: Sequence[ModelUnderTest], inputs: Inputs) -> dict[str, Prompt]:
        """Prompt of each model; a reference gets the article, without which it cannot answer."""
        data = inputs.get("data")
        if data is None:
            return {model.name: Prompt([{"role": "user", "content": self.prompt}]) for model in models}
        row = typical_row(read_rows(data.path / "test.jsonl"))
        file = data.path / "articles.jsonl"
        articles = read_articles(file) if file.is_file() else {}
        (reference,) = reference_prompts([row], articles, read_tasks(data.path, [row.task]))
        with_article = Prompt(reference.answer_messages, reference.tools)
        return {model.name: with_article if model.role == "reference" else Prompt.of(row) for model in models}

    def _probes(self, model: ModelUnderTest, prompt: Prompt, scratch: Path) -> tuple[list[Probe], list[str]]:
        """Probes of one model, its main engine first, with notes on engines that cannot run it."""
        found: dict[EngineName, Probe] = {}
        notes: list[str] = []
        for wanted in self.engines:
            probe, note = make_probe(model, wanted, prompt, scratch)
            notes += [note] if note else []
            if probe is not None:
                found.setdefault(probe.engine, replace(probe, first=not found))
        return list(found.values()), list(dict.fromkeys(notes))

    def _general_notes(self, prompt: Prompt, no_energy: bool, device: str) -> Iterator[str]:
        length = sum(len(message["content"]) for message in prompt.messages) + len(prompt.tools)
        coverage = f"The range of {self.repeats} repeats contains the true median with probability {1 - 2 ** (1 - self.repeats):.0%}."
        yield (
            f"Rounds of timing over all models: {self.repeats}, each in a fresh process after {self.warm_up_tokens} warm-up tokens, "
            f"with answers of {self.tokens} tokens to a prompt of {length} characters. "
            + (coverage if self.repeats > 1 else "One repeat has no range.")
        )
        if device != "cpu":
            yield f"transformers runs on {device}, llama.cpp on the CPU: compare models within one engine."
        if self.energy == "codecarbon":
            yield "Energy: whole machine, by codecarbon, which estimates what it cannot read."
        elif self.energy == "counters" and no_energy:
            yield "Energy: not measured; this user cannot read the machine's energy counters."
        elif self.energy == "counters":
            yield "Energy: whole machine during one stream, including idle hardware."


def typical_row(rows: Sequence[Row]) -> Row:
    """Return the row whose prompt has the median length in characters."""
    return sorted(rows, key=lambda row: sum(len(turn["content"]) for turn in row.prompt))[len(rows) // 2]


def failure_of(name: str, timed: Sequence[Timed], notes: Sequence[str]) -> Failure | None:
    """Return why a model was not timed in its main engine; None if it was."""
    own = timings_of(timed, name)
    if not own:
        return Failure(" ".join(note.removeprefix(f"{name}: ") for note in notes))
    return Failure(own[0].failure) if own[0].failure else None


def parents_of(models: Sequence[ModelUnderTest], inputs: Inputs) -> dict[str, str]:
    """Return each model's parent among the timed models; "" if unknown."""
    names = {model.name: model.digest for model in models}
    artifacts = {artifact.name: artifact for port in MODEL_PORTS for artifact in inputs.many(port)}
    return {name: made_from(artifacts[name], names) for name in names}


def with_figures(
    summary: EvaluationSummary, models: Sequence[ModelUnderTest], timed: Sequence[Timed], parents: Mapping[str, str]
) -> EvaluationSummary:
    """Return the summary with every model's figures, engine and notes."""
    entries, notes = dict(summary.models), list(summary.notes)
    for model in models:
        found, own_notes = figures_of(model, timed, models[0].name, parents[model.name])
        engine = next((item.probe.words for item in timings_of(timed, model.name)), model.engine)
        entries[model.name] = entries[model.name].model_copy(update={"figures": found, "engine": engine})
        notes += own_notes
    return summary.model_copy(update={"models": entries, "notes": notes})


def figures_of(
    model: ModelUnderTest, timed: Sequence[Timed], baseline: str, parent: str
) -> tuple[dict[str, Figure], list[str]]:
    """Return a model's figures, and notes on comparisons with the baseline and its parent."""
    size = Figure(value=float(weight_bytes(model.weights)), unit="bytes", better="lower")
    found, notes = {"size_bytes": size}, []
    for item in timings_of(timed, model.name):
        engine, own, first = item.probe.engine, item.samples, item.probe.first
        figures = summarize(own)
        if own and model.name != baseline:
            untimed = [
                other for other in {baseline: 0, parent: 0} if other and not samples_in_engine(timed, other, engine)
            ]
            if untimed and first:
                note = (
                    f"{model.name}: timed in {engine}, {' and '.join(untimed)} not, so their speeds are not compared."
                )
                notes.append(note)
            figures |= ratios(own, samples_in_engine(timed, baseline, engine), "speed_ratio")
            before = samples_in_engine(timed, parent, engine)
            figures |= ratios(own, before, "parent_ratio")
            notes += slower_notes(model.name, parent, engine, own, before)
        if item.failure and not first:
            notes.append(f"{model.name}: not timed in {engine}: {item.failure}.")
        found |= named_by_engine(figures, engine, first)
    return found, notes


def busy_notes() -> list[str]:
    """Return a note if other programs used the processor when timing began."""
    import psutil

    share = psutil.cpu_percent(interval=0.5) / 100
    note = f"Other programs used {share:.0%} of the processor when timing began: trust the ratios, not the seconds."
    return [note] if share > BUSY else []


def flat_metrics(summary: EvaluationSummary) -> Metrics:
    """Return speeds and their ratios to the baseline."""
    shown = ("tokens_per_second", "speed_ratio")
    found = {
        f"{name}.{figure}": model.figures.get(figure) for name, model in summary.models.items() for figure in shown
    }
    return {name: figure.value for name, figure in found.items() if figure is not None}
