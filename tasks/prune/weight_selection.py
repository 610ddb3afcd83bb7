"""Weight selection: a smaller student initialized from its teacher's weights.

Source: Xu et al. 2023, arXiv 2311.18823.  Layers by rule, as in DistilBERT (Sanh et al. 2019, arXiv 1910.01108); width by activations, as in Minitron
(Muralidharan et al. 2024, arXiv 2407.14679).  Such a student is of little use before a distill step trains it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.prune.selection.activations import measure
from tasks.prune.selection.copying import build_student
from tasks.prune.selection.noise import warn_noisy
from tasks.prune.selection.picks import Scores, choose, leading
from tasks.prune.selection.record import SELECTION_FILE, write_selection
from tasks.prune.selection.shape import Rule, Shape, check_heads, check_taken, layers_by_rule, shape_of, student_shape
from tasks.shared.errors import ConfigError, StillroomError, TechniqueError
from tasks.shared.forecast import Dimensions, Forecast, Workload, forecast_reading
from tasks.shared.model.calibration import calibration_ids, calibration_rows
from tasks.shared.model.dense import check_dense
from tasks.shared.model.families import CONV1D, FUSED, check_family, has_parts, is_mixture
from tasks.shared.model.layout import decoder_layers, find_layout, kept_layers_config, layer_count
from tasks.shared.model.masks import carry_masks
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Refusal, Spec, StepRun, Upstream

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class WeightSelection:
    """Make a student with fewer layers, channels, neurons or heads from its teacher.

    Dimensions of 0 are the teacher's.  Heads keep their size; weights that are not copied get the architecture's initialization,
    by the seed.
    """

    layers: Annotated[int, Field(ge=0)] = 0
    """Decoder layers of the student; 0: as many as the teacher has."""
    rule: Rule = "uniform"
    """Choice of the teacher's layers: evenly spaced, the first, the last, or both ends.  none: random layers; only embedding, head and
    last norm come from the teacher."""
    take: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """The teacher's layers by index (0 is next to the embedding); overrides `layers` and `rule`."""
    hidden_size: Annotated[int, Field(ge=0)] = 0
    """Channels of the hidden state; 0: as many as the teacher has."""
    intermediate_size: Annotated[int, Field(ge=0)] = 0
    """Neurons of each feed-forward block; 0: as many as the teacher has."""
    heads: Annotated[int, Field(ge=0)] = 0
    """Query heads; 0 keeps the teacher's number of query heads per key-value head."""
    kv_heads: Annotated[int, Field(ge=0)] = 0
    """Key-value heads; 0 keeps the teacher's number of query heads per key-value head."""
    width: Literal["activation", "leading"] = "activation"
    """Choice of channels, neurons and heads: those with the largest activations on the calibration rows, or the first ones."""
    calibration_rows: Annotated[int, Field(ge=1)] = 32
    """Conversations of the calibration split to measure activations on."""
    max_tokens: Annotated[int, Field(ge=8)] = 256
    """Most tokens per conversation; longer ones are truncated."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Conversations per forward pass."""

    spec: ClassVar[Spec] = Spec(
        summary="A smaller student initialized from its teacher's weights: layers by rule, width by activations",
        ports={"model": Port((Kind.MODEL,)), "calibration": Port((Kind.CORPUS,), optional=True)},
        produces=Kind.MODEL,
        libraries=("torch", "transformers", "tokenizers", "gguf"),
        device="accelerator",
        accepts="dense",
        gives="dense",
        paper="Xu et al. 2023, arXiv 2311.18823",
    )

    @property
    def narrower(self) -> bool:
        """True if a width is set."""
        return any((self.hidden_size, self.intermediate_size, self.heads, self.kv_heads))

    @property
    def measures(self) -> bool:
        """True if activations choose the width: a width is set, and `width` is "activation"."""
        return self.narrower and self.width == "activation"

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse weights with unknown axes, and a narrower width where projections are fused."""
        kind = config.get("model_type")
        if has_parts(config):
            return Refusal("several parts", "a text-only model")
        if kind in CONV1D:
            return Refusal("its projections are Conv1D, and its configuration has other names for sizes", "prune/depth")
        if self.narrower and kind in FUSED:
            return Refusal(
                "query, key and value share one projection, which has no axis of heads to cut",
                "layers only, without a width; or prune/depth",
            )
        if self.narrower and is_mixture(config):
            return Refusal("each expert has neurons of its own", "layers only, without a width; or prune/depth")
        return None

    def changed_config(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the configuration with the student's layers and, if known, its widths."""
        total = layer_count(config)
        if not total:
            return config
        count = len(self.take) or self.layers or total
        taken = sorted(self.take) or layers_by_rule(self.rule, count, total)
        changed = {**config, **kept_layers_config(config, origins_of(taken, count, total))}
        return changed | (self._widths(config) if self.narrower and config.get("hidden_size") else {})

    def _widths(self, config: Mapping[str, Any]) -> dict[str, int]:
        """Return the student's widths under the names of a configuration."""
        teacher = Dimensions.from_config(config)
        student, head = self._shape(teacher), teacher.query // teacher.heads
        return {
            "hidden_size": student.width, "intermediate_size": student.feed_forward, "num_attention_heads": student.heads,
            "num_key_value_heads": student.value // head, "head_dim": head,
        }  # fmt: skip

    def plan_problems(
        self, where: str, inputs: Mapping[str, tuple[str, ...]], upstream: Mapping[str, Upstream]
    ) -> Iterator[StillroomError]:
        """Yield problems: indivisible heads, missing calibration data."""
        if self.heads and self.kv_heads:
            try:
                check_heads(self.heads, self.kv_heads)
            except TechniqueError as error:
                yield ConfigError(f"{where}.{error.where}", error.got, error.wanted, error.fix)
        if self.measures and not inputs.get("calibration"):
            yield no_calibration(where)

    def forecast(self, work: Workload) -> Forecast:
        """One pass over the calibration rows if activations decide; teacher and student in memory."""
        teacher = work.size()
        student = teacher.reshaped(self._shape(teacher.shape))
        seconds = work.reading(teacher, self.calibration_rows * self.max_tokens) if self.measures else 0.0
        return forecast_reading(work, seconds, teacher.parameters + student.parameters, student)

    def _shape(self, teacher: Dimensions) -> Dimensions:
        """Return the student's shape according to the settings."""
        head = teacher.query / teacher.heads
        shared = teacher.query / max(1, teacher.value)
        heads = self.heads or round(self.kv_heads * shared) or teacher.heads
        return replace(
            teacher,
            layers=len(self.take) or self.layers or teacher.layers,
            width=self.hidden_size or teacher.width,
            feed_forward=self.intermediate_size or teacher.feed_forward,
            heads=heads,
            query=round(heads * head),
            value=round((self.kv_heads or heads / shared) * head),
        )

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write the student and selection.json (the copied parts of each layer) to `out`.

        Raises TechniqueError for sizes above the teacher's, or an architecture that cannot be shrunk.
        """
        import torch

        from tasks.shared.model.loading import load_model, load_tokenizer
        from tasks.shared.model.saving import save_model

        torch.set_num_threads(run.compute.threads)
        source, corpus = inputs.one("model").path, inputs.get("calibration")
        check_dense(source)
        model, tokenizer = load_model(source, device=run.compute.device), load_tokenizer(source, chat=False)
        check_family(self, model.config.to_dict(), str(source))
        decoder_layers(model)
        teacher = shape_of(model.config)
        student, layers = self.student(teacher)
        scores = self.scores(model, tokenizer, teacher, corpus.path if corpus else None)
        picks = choose(scores, teacher, student)
        origins = origins_of(layers, student.layers, teacher.layers)
        torch.manual_seed(run.seed)
        small, copied = build_student(model, student, picks, layers, origins)
        before, after = model.num_parameters(), small.num_parameters()
        save_model(small, tokenizer, out)
        carried = carry_masks(source, out, find_layout(small).origin(layers))
        write_selection(out / SELECTION_FILE, layers, picks, scores.hidden.tolist() if self.measures else [])
        return {
            "layers_before": teacher.layers,
            "layers": student.layers,
            "taken": " ".join(map(str, layers)),
            "hidden_size": student.hidden,
            "intermediate_size": student.intermediate,
            "heads": student.heads,
            "kv_heads": student.kv_heads,
            "parameters_before": before,
            "parameters": after,
            "copied": copied / after,
            **carried,
        }

    def student(self, teacher: Shape) -> tuple[Shape, list[int]]:
        """Return the student's sizes and its teacher layers; an empty list if layers start fresh."""
        taken = check_taken(self.take, teacher.layers)
        count = len(taken) or self.layers
        fresh = self.rule == "none" and not taken
        shape = student_shape(
            teacher, count, self.hidden_size, self.intermediate_size, self.heads, self.kv_heads, fresh
        )
        return shape, taken or layers_by_rule(self.rule, shape.layers, teacher.layers)

    def scores(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", teacher: Shape, corpus: Path | None
    ) -> Scores:
        """Return the scores that choose channels, neurons and heads.

        Raises ConfigError if activations are needed and no calibration data is given.
        """
        if not self.measures:
            return leading(teacher)
        if corpus is None:
            raise no_calibration("weight_selection")
        rows = calibration_rows(corpus, self.calibration_rows)
        ids = calibration_ids(tokenizer, rows, self.max_tokens)
        warn_noisy(sum(map(len, ids)))
        return measure(model, teacher, ids, self.batch_size, tokenizer.pad_token_id)


def origins_of(taken: Sequence[int], count: int, total: int) -> list[int]:
    """Teacher layer whose kind each layer of the student has; evenly spaced if none are taken."""
    return list(taken) or [place * total // count for place in range(count)]


def no_calibration(where: str) -> ConfigError:
    """Return the error for `width: activation` without a corpus."""
    return ConfigError(
        f"{where}.inputs.calibration",
        "width: activation, and no corpus to measure activations on",
        "a corpus",
        f"{where}.inputs.calibration=corpus, or width: leading",
    )
