"""Feature distillation: match hidden states (and attention) to a teacher in memory.

Each matched layer of the student has a linear projection to the teacher's width, which is trained with it but not part of the
artifact (FitNets, Romero et al. 2015, arXiv 1412.6550; TinyBERT, Jiao et al. 2020, arXiv 1909.10351, section 3.1).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.distill.layers import KEPT, Pairs, Rule, check_pairs, kept_layers, layer_pairs
from tasks.distill.losses.answers import answer_loss, row_shares
from tasks.distill.losses.features import Distance, attention_divergence, mean_over_tokens, state_distance
from tasks.distill.training.loop import train_model
from tasks.distill.training.objective import Batch, Objective, states_of
from tasks.distill.training.options import Taught
from tasks.distill.training.settings import Training, training_spec
from tasks.distill.vocabulary import match_vocabularies
from tasks.shared.errors import ConfigError, TechniqueError
from tasks.shared.formats.rows import read_rows
from tasks.shared.model.encoding import IGNORED, Encoded
from tasks.shared.model.head import core_of, output_head
from tasks.shared.model.loading import load_model, training_tokenizer
from tasks.shared.model.precision import chosen_dtype
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun, Upstream

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear, ModuleList
    from transformers import PreTrainedModel

PROJECTIONS = "feature_projections"
"""Attribute of the student that holds the projections during training, so that checkpoints include them."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Features(Training, Taught):
    """Train on the answers and on the distance between student and teacher hidden states."""

    spec: ClassVar[Spec] = training_spec(
        summary="Hard labels, and hidden states or attention matched to a teacher's through projections",
        paper="Romero et al. 2015, arXiv 1412.6550; Jiao et al. 2020, arXiv 1909.10351",
        ports={"teacher": Port((Kind.MODEL,))},
    )

    layers: Rule = "uniform"
    """Rule for the matched layers: spread evenly, the last ones, the first ones, or those that `prune/depth` kept (`layers.py`)."""
    pairs: tuple[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]], ...] = ()
    """Pairs of a student layer and a teacher layer (0 is next to the embedding); overrides `layers`."""
    distance: Distance = "mse"
    """Distance of hidden states: squared error relative to the teacher's mean square, or 1 minus the cosine."""
    tokens: Literal["all", "answers"] = "all"
    """Match the states of all tokens, or only those that predict the answer; padding is ignored."""
    hard_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the answers' cross-entropy."""
    hidden_weight: Annotated[float, Field(ge=0)] = 10.0
    """Weight of the hidden states' distance, mean over the pairs.  At 1, the initial gradient was a fortieth of the cross-entropy's, for
    the embedded model without nine of its 30 layers and the whole model as teacher."""
    attention_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the attention maps' divergence, mean over the pairs; above 0, both models use slow (eager) attention, which returns
    the maps."""

    def plan_problems(
        self, where: str, inputs: Mapping[str, tuple[str, ...]], upstream: Mapping[str, Upstream]
    ) -> Iterator[ConfigError]:
        """Yield problems: nothing to match, or `kept` for a student that was not pruned."""
        if not self.hidden_weight and not self.attention_weight:
            yield ConfigError(
                where, "hidden_weight and attention_weight are 0", "something to match",
                f"{where}.hidden_weight=1, or distill/sft",
            )  # fmt: skip
        students = [upstream.get(name) for name in inputs.get("model", ())]
        pruned = all(step and any(plot.file == KEPT for plot in step.technique.spec.plots) for step in students)
        if self.layers == "kept" and not self.pairs and not pruned:
            yield ConfigError(
                f"{where}.layers", f"kept, and {', '.join(inputs.get('model', ()))} was not pruned by a step of this recipe",
                "inputs.model: a prune/depth step", f"{where}.layers=uniform",
            )  # fmt: skip

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Train and write the model folder with loss.csv (`train_model`).

        Raises ModelError for a teacher of another tokenizer, TechniqueError for layers or heads that cannot be matched.
        """
        model, teacher = inputs.one("model").path, inputs.one("teacher").path
        rows = read_rows(inputs.one("data").path / "train.jsonl")
        return train_model(self, model, rows, Matching(self, model, teacher, run.seed), out, run)


class Matching(Objective):
    """Hard labels, hidden states and attention maps."""

    knob = "hard_weight, hidden_weight and attention_weight"

    def __init__(self, settings: Features, student: Path, teacher: Path, seed: int) -> None:
        self.settings, self.student, self.source, self.seed = settings, student, teacher, seed
        self.family = match_vocabularies(*(training_tokenizer(source).get_vocab() for source in (student, teacher)))
        self.teacher: Any = None
        self.pairs: Pairs = ()
        self.missing = 0

    def label(self, rows: Sequence[Encoded]) -> list[Encoded]:
        """Add `teacher_ids` and `known` to the rows.

        A conversation with a token that the teacher lacks gets hard targets only.
        """
        found = self.family.add_teacher_ids(rows)
        self.missing += sum(not row["known"] for row in found)
        return found

    def attach(self, model: "PreTrainedModel", device: str) -> None:
        """Load the teacher, and add a projection for each pair to the student."""
        from torch.nn import ModuleList

        self.teacher = load_model(
            self.source, chosen_dtype(self.settings.teacher_dtype, device), device
        ).requires_grad_(False)
        mine, theirs = model.config.get_text_config(), self.teacher.config.get_text_config()
        self.pairs = self._pairs(mine.num_hidden_layers, theirs.num_hidden_layers)
        if self.settings.attention_weight:
            _check_heads(mine.num_attention_heads, theirs.num_attention_heads)
            for part in (model, self.teacher):
                part.set_attn_implementation("eager")  # the only one that returns its maps
        if self.settings.hidden_weight:
            made = [
                projection(mine.hidden_size, theirs.hidden_size, self.seed + index) for index in range(len(self.pairs))
            ]
            model.add_module(PROJECTIONS, ModuleList(made))

    def _pairs(self, student: int, teacher: int) -> Pairs:
        rule, by_hand = self.settings.layers, self.settings.pairs
        if by_hand:
            return check_pairs(by_hand, student, teacher)
        return layer_pairs(
            rule, student, teacher, kept_layers(self.student, student, teacher) if rule == "kept" else ()
        )

    def detach(self, model: "PreTrainedModel") -> None:
        """Remove the projections and release the teacher."""
        self.teacher = None
        if hasattr(model, PROJECTIONS):
            delattr(model, PROJECTIONS)

    def terms(self, model: Any, batch: Batch, count: "Tensor | int | None") -> "dict[str, Tensor]":
        """Return the terms `hard`, `hidden` and `attention`, except those of weight 0."""
        import torch

        settings = self.settings
        asked = {
            "output_hidden_states": settings.hidden_weight > 0, "output_attentions": settings.attention_weight > 0
        }  # fmt: skip
        seen = states_of(model, batch, **asked)
        with torch.no_grad():
            wanted = states_of(self.teacher, {**batch, "input_ids": batch["teacher_ids"]}, **asked)
        found = {}
        if settings.hard_weight:
            loss = answer_loss(seen.last_hidden_state, output_head(model), batch["labels"], count)
            found["hard"] = settings.hard_weight * loss
        mask, shares = self._mask(batch), row_shares(batch["labels"], count)
        if settings.hidden_weight:
            projections: ModuleList = getattr(core_of(model), PROJECTIONS)
            distances = [
                state_distance(
                    project(seen.hidden_states[mine + 1]), wanted.hidden_states[theirs + 1], settings.distance
                )
                for project, (mine, theirs) in zip(projections, self.pairs, strict=True)
            ]
            found["hidden"] = settings.hidden_weight * mean_over_tokens(_mean(distances), mask, shares)
        if settings.attention_weight:
            distances = [
                attention_divergence(seen.attentions[mine], wanted.attentions[theirs]) for mine, theirs in self.pairs
            ]
            found["attention"] = settings.attention_weight * mean_over_tokens(_mean(distances), mask, shares)
        return found

    def _mask(self, batch: Batch) -> "Tensor":
        """Mask of the tokens whose states are matched: (batch, tokens), bool."""
        import torch

        known = batch["known"][:, None].bool()
        if self.settings.tokens == "all":
            return batch["attention_mask"].bool() & known
        return torch.nn.functional.pad(batch["labels"][:, 1:] != IGNORED, (0, 1)) & known

    def figures(self) -> Mapping[str, float | int | str]:
        """Return the matched pairs, and the number of conversations with hard targets only."""
        missing = {"rows_without_targets": self.missing} if self.missing else {}
        return {"pairs": " ".join(f"{mine}:{theirs}" for mine, theirs in self.pairs), **missing}


def projection(student: int, teacher: int, seed: int) -> "Linear":
    """Linear map from the student's width to the teacher's.

    It starts as the identity if the widths are equal, else with orthonormal rows or columns, which preserve norms as far as
    the widths allow.
    """
    import torch
    from torch.nn import Linear, init

    layer = torch.nn.utils.skip_init(Linear, student, teacher, bias=False)
    if student == teacher:
        init.eye_(layer.weight)
    else:
        init.orthogonal_(layer.weight, generator=torch.Generator().manual_seed(seed))
    return layer


def _mean(values: "list[Tensor]") -> "Tensor":
    import torch

    return torch.stack(values).mean(dim=0)


def _check_heads(student: int, teacher: int) -> None:
    if student != teacher:
        raise TechniqueError(
            "attention_weight",
            f"the student has {student} attention heads, the teacher {teacher}",
            "as many heads",
            "attention_weight=0",
        )
