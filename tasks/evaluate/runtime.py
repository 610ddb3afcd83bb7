"""What serving a model costs: time to the first token and per token, throughput, time to load, memory, energy.

Dense model folders are written as f16 GGUF and served by llama.cpp like the GGUF candidates, so that formats compare in one
engine.  Compressed-tensors folders, which vLLM would serve, run in transformers where no vLLM is given, and the figures say so.
Every repeat is a fresh process: its memory peak and its time to load are its own.  Repeats go round the models (A B C A B C),
and no timing is ever taken from an earlier run.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.evaluate.models_under_test.isolated_runs import make_sheet
from tasks.evaluate.models_under_test.model_under_test import (
    MODEL_PORTS,
    Messages,
    ModelUnderTest,
    list_models,
    reference_questions,
)
from tasks.evaluate.timing.energy import Source, check_source, open_meter
from tasks.evaluate.timing.engines import Effort, Probe, take_sample
from tasks.evaluate.timing.rounds import (
    Timed,
    in_engine,
    of_engine,
    of_model,
    ratios,
    slower,
    summarize,
    time_in_rounds,
)
from tasks.shared.engines.engine import Engine
from tasks.shared.engines.vllm_server import find_vllm, vllm_version
from tasks.shared.errors import ConfigError, ModelError, TechniqueError
from tasks.shared.files import replacing
from tasks.shared.formats.articles import read_articles
from tasks.shared.formats.records import Figure
from tasks.shared.formats.rows import Row, read_rows
from tasks.shared.formats.scores import Sheet, write_scores
from tasks.shared.isolation import Failure, run_isolated
from tasks.shared.model.sizes import weight_bytes
from tasks.shared.model.weights import is_quantized
from tasks.shared.store.lineage import made_from
from tasks.shared.technique import Inputs, Kind, Metrics, Port, StepRun, Upstream

Choice = Literal["auto", "transformers", "llama.cpp", "vllm"]
Streams = Annotated[int, Field(ge=2, le=256)]
BUSY = 0.1
"""Share of the processor that other programs may use before the notes say so."""
STANDARD_PROMPT = "How long do I have to send back a kettle that I bought last week, and who pays for the postage?"


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Runtime:
    """Time every model in the engine that would serve it, and compare speeds round by round.

    A median of n repeats lies in their range with probability 1 - 2^(1-n) (the sign test's interval): 75 % for three.
    """

    engines: Annotated[tuple[Choice, ...], Field(min_length=1)] = ("auto",)
    """Where each model is timed; its figures from the first of them that can run it go by their plain names.  auto: llama.cpp for
    GGUF files and dense folders (as f16 GGUF), transformers for compressed folders."""
    tokens: Annotated[int, Field(ge=2)] = 24
    """Length of a timed answer, tokens."""
    batch_sizes: tuple[Streams, ...] = (8,)
    """Numbers of streams decoded together, besides one alone."""
    warm_up_tokens: Annotated[int, Field(ge=2)] = 4
    """Length of the answer before each timed one, tokens; it is not counted."""
    repeats: Annotated[int, Field(ge=1)] = 3
    """Rounds over all models, each model in a fresh process."""
    context: Annotated[int, Field(ge=64)] = 1024
    """Tokens that prompt and answer of one stream may take together; llama.cpp reserves memory for them."""
    prompt: Annotated[str, Field(min_length=1)] = STANDARD_PROMPT
    """What the models are asked where no corpus is given; with one, its test question of median length is asked."""
    time_reference: bool = False
    """Time the reference too."""
    energy: Source = "counters"
    """Where energy is read: the machine's own counters (RAPL, and NVML for a GPU), codecarbon if it is installed, which estimates what
    it cannot read, or not at all."""
    vllm_command: str = ""
    """The `vllm` executable of the environment in which vLLM is installed, for engines: [vllm]."""
    limit_s: Annotated[float, Field(gt=0)] = 300.0
    """Seconds that a model may take to load, and let pass without news (in transformers: for all of a repeat); else it counts as failed."""

    ports: ClassVar[Mapping[str, Port]] = {**MODEL_PORTS, "data": Port((Kind.CORPUS,), optional=True)}
    produces: ClassVar[Kind] = Kind.SCORES
    alone: ClassVar[bool] = True
    libraries: ClassVar[tuple[str, ...]] = (
        "torch", "transformers", "tokenizers", "compressed-tensors", "auto-round", "gguf", "xllamacpp", "scipy",
    )  # fmt: skip

    def plan_problems(
        self, where: str, inputs: Mapping[str, tuple[str, ...]], upstream: Mapping[str, Upstream]
    ) -> Iterator[ConfigError]:
        """An engine or a meter that is asked for and not there."""
        try:
            self._check_tools()
        except ConfigError as error:
            yield ConfigError(f"{where}.{error.where}", error.got, error.wanted, error.fix)

    def _check_tools(self) -> None:
        if "vllm" in self.engines:
            find_vllm(self.vllm_command)
        check_source(self.energy)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Time all models; writes scores.json, and an items.jsonl without items.

        A candidate that cannot be timed is named as failed.  Raises ModelError if that is the baseline, ConfigError for an engine
        or a meter that is not there.
        """
        self._check_tools()
        meter = open_meter(self.energy, run.compute.device)
        subjects = [subject for subject in list_models(inputs) if subject.role != "reference" or self.time_reference]
        baseline, asked = subjects[0].name, self._conversations(subjects, inputs)
        notes = [*self._general_notes(asked[baseline], meter is None, run.compute.device), *busy_notes()]
        plans = {subject.name: self._probes(subject, asked[subject.name], run.scratch) for subject in subjects}
        if not plans[baseline][0]:
            raise ModelError(f"baseline {baseline}", " ".join(plans[baseline][1]), "a model that can be timed")
        probes = [probe for found, _ in plans.values() for probe in found]
        probes.sort(key=lambda probe: get_args(Engine).index(probe.engine))  # those that are compared stand together
        timed = time_in_rounds(probes, self._effort(run), self.repeats, baseline, take_sample)
        readings = {name: failure_of(name, timed, said) for name, (_, said) in plans.items()}
        notes += [note for _, said in plans.values() for note in said]
        sheet = make_sheet(subjects, readings, {}, run, self.libraries, notes)
        if "vllm" in self.engines:
            sheet = sheet.model_copy(update={"versions": {**sheet.versions, "vllm": vllm_version(self.vllm_command)}})
        sheet = with_figures(sheet, subjects, timed, parents_of(subjects, inputs))
        write_scores(out, sheet, [])
        return flat_metrics(sheet)

    def _effort(self, run: StepRun) -> Effort:
        return Effort(
            self.tokens, self.warm_up_tokens, self.batch_sizes, self.context, self.limit_s, self.energy, self.vllm_command,
            run.compute.threads, run.compute.device,
        )  # fmt: skip

    def _conversations(self, subjects: Sequence[ModelUnderTest], inputs: Inputs) -> dict[str, Messages]:
        """What each model is asked.  A reference gets the article in its prompt, as it must to answer at all."""
        data = inputs.get("data")
        if data is None:
            return {subject.name: [{"role": "user", "content": self.prompt}] for subject in subjects}
        row = typical_row(read_rows(data.path / "test.jsonl"))
        file = data.path / "articles.jsonl"
        articles = read_articles(file) if file.is_file() else {}
        (question,) = reference_questions([row], articles, ())
        return {subject.name: question.answer if subject.role == "reference" else row.prompt for subject in subjects}

    def _probes(self, subject: ModelUnderTest, messages: Messages, scratch: Path) -> tuple[list[Probe], list[str]]:
        """How to time a subject, engine by engine, the first one first; and what there is to say about it."""
        found: dict[Engine, Probe] = {}
        notes: list[str] = []
        for wanted in self.engines:
            probe, note = make_probe(subject, wanted, messages, scratch)
            notes += [note] if note else []
            if probe is not None:
                found.setdefault(probe.engine, replace(probe, first=not found))
        return list(found.values()), list(dict.fromkeys(notes))

    def _general_notes(self, messages: Messages, no_energy: bool, device: str) -> Iterator[str]:
        length = sum(len(message["content"]) for message in messages)
        sure = f"The range of {self.repeats} repeats holds the true median with a chance of {1 - 2 ** (1 - self.repeats):.0%}."
        yield (
            f"Rounds of timing over all models: {self.repeats}, every time a fresh process and {self.warm_up_tokens} tokens of warm-up, "
            f"with answers of {self.tokens} tokens to a prompt of {length} characters. "
            + (sure if self.repeats > 1 else "One repeat shows no range.")
        )
        if device != "cpu":
            yield f"transformers runs on {device} here, llama.cpp on the processor: compare models within one engine."
        if self.energy == "codecarbon":
            yield "Energy: of the whole machine by codecarbon, which estimates what it cannot read."
        elif self.energy == "counters" and no_energy:
            yield "Energy: not measured, for this user can read no energy counters of this machine."
        elif self.energy == "counters":
            yield "Energy: of the whole machine while it answered one question after the other, what idles beside the model included."


def typical_row(rows: Sequence[Row]) -> Row:
    """The row whose prompt has the median length in characters."""
    return sorted(rows, key=lambda row: sum(len(message.content) for message in row.messages[:-1]))[len(rows) // 2]


def make_probe(subject: ModelUnderTest, wanted: Choice, messages: Messages, scratch: Path) -> tuple[Probe | None, str]:
    """How to time a subject in an engine, or None, and a note for the sheet ("" for none).  May write an f16 GGUF into scratch."""
    name, weights = subject.name, subject.weights
    if subject.broken:
        return None, f"{name}: not timed: {subject.broken}."
    if subject.engine == "llama.cpp":
        if wanted in {"auto", "llama.cpp"}:
            return Probe(name, "llama.cpp", weights, "", messages), ""
        return None, f"{name}: not timed in {wanted}, which is not what serves a GGUF file."
    if wanted in {"transformers", "vllm"}:
        return Probe(name, "transformers" if wanted == "transformers" else "vllm", weights, "", messages), ""
    if is_quantized(weights):
        reason = f"llama.cpp does not read {subject.format}; vLLM is the engine that would serve it"
    else:
        file = scratch / f"{name.replace(' ', '_')}.f16.gguf"
        refused = "" if file.is_file() else run_isolated(write_f16, weights, file)
        if isinstance(refused, Failure):
            return None, f"{name}: not timed in llama.cpp: writing its f16 GGUF failed ({refused.reason})."
        if not refused:
            return Probe(name, "llama.cpp", file, "f16 GGUF", messages), ""
        reason = f"no f16 GGUF can be written of it ({refused})"
    if wanted == "llama.cpp":
        return None, f"{name}: not timed in llama.cpp: {reason}."
    return Probe(name, "transformers", weights, "", messages), f"{name}: timed in transformers: {reason}."


def write_f16(folder: Path, file: Path) -> str:
    """Write a dense folder as f16 GGUF, all or nothing; why that cannot be done, or "" when it is."""
    from tasks.shared.gguf.writer import write_gguf

    try:
        with replacing(file) as temporary:
            write_gguf(folder, temporary, "f16")
    except TechniqueError as error:
        return " ".join(str(error).split())
    return ""


def failure_of(name: str, timed: Sequence[Timed], notes: Sequence[str]) -> Failure | None:
    """Why a model has no figures of its own; what went wrong in a further engine alone is no failure of it."""
    own = of_model(timed, name)
    if not own:
        return Failure(" ".join(note.removeprefix(f"{name}: ") for note in notes))
    return Failure(own[0].failure) if own[0].failure else None


def parents_of(subjects: Sequence[ModelUnderTest], inputs: Inputs) -> dict[str, str]:
    """The model that each was made from, among those timed; "" where nobody knows."""
    names = {subject.name: subject.digest for subject in subjects}
    artifacts = {artifact.name: artifact for port in MODEL_PORTS for artifact in inputs.many(port)}
    return {name: made_from(artifacts[name], names) for name in names}


def with_figures(
    sheet: Sheet, subjects: Sequence[ModelUnderTest], timed: Sequence[Timed], parents: Mapping[str, str]
) -> Sheet:
    """The sheet with every model's figures and engine, and what has to be said about them."""
    models, notes = dict(sheet.models), list(sheet.notes)
    for subject in subjects:
        found, said = figures_of(subject, timed, subjects[0].name, parents[subject.name])
        engine = next((item.probe.words for item in of_model(timed, subject.name)), subject.engine)
        models[subject.name] = models[subject.name].model_copy(update={"figures": found, "engine": engine})
        notes += said
    return sheet.model_copy(update={"models": models, "notes": notes})


def figures_of(
    subject: ModelUnderTest, timed: Sequence[Timed], baseline: str, parent: str
) -> tuple[dict[str, Figure], list[str]]:
    """All figures of a subject, and what has to be said about them: that it is slower than its parent, or cannot be compared."""
    size = Figure(value=float(weight_bytes(subject.weights)), unit="bytes", better="lower")
    found, notes = {"size_bytes": size}, []
    for item in of_model(timed, subject.name):
        engine, own, first = item.probe.engine, item.samples, item.probe.first
        figures = summarize(own)
        if own and subject.name != baseline:
            apart = [other for other in {baseline: 0, parent: 0} if other and not in_engine(timed, other, engine)]
            if apart and first:
                said = (
                    f"{subject.name}: timed in {engine}, {' and '.join(apart)} not, so their speeds are not compared."
                )
                notes.append(said)
            figures |= ratios(own, in_engine(timed, baseline, engine), "speed_ratio")
            before = in_engine(timed, parent, engine)
            figures |= ratios(own, before, "parent_ratio")
            notes += slower(subject.name, parent, engine, own, before)
        if item.failure and not first:
            notes.append(f"{subject.name}: not timed in {engine}: {item.failure}.")
        found |= of_engine(figures, engine, first)
    return found, notes


def busy_notes() -> list[str]:
    """That other programs were using the processor when timing began."""
    import psutil

    share = psutil.cpu_percent(interval=0.5) / 100
    said = f"Other programs used {share:.0%} of the processor when timing began: trust the ratios, not the seconds."
    return [said] if share > BUSY else []


def flat_metrics(sheet: Sheet) -> Metrics:
    """Speeds, and their ratios to the baseline's."""
    shown = ("tokens_per_second", "speed_ratio")
    found = {f"{name}.{figure}": model.figures.get(figure) for name, model in sheet.models.items() for figure in shown}
    return {name: figure.value for name, figure in found.items() if figure is not None}
