"""Soft-target distillation: the student learns the teacher's next-token distributions.

Source: Hinton et al. 2015, arXiv 1503.02531.

The teacher is in memory next to the student (port `teacher`), or a separate step stored its targets (port `targets`,
`logits/topk`) and only the student is in memory.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.distill.losses.mixed import Blend, Online, Stored, blended_loss, without_absent
from tasks.distill.losses.soft import Divergence
from tasks.distill.training.loop import train_model
from tasks.distill.training.objective import Batch, Objective, last_hidden
from tasks.distill.training.options import Adapted, Taught
from tasks.distill.training.settings import Training, training_spec
from tasks.distill.vocabulary import match_vocabularies
from tasks.shared.errors import ConfigError, DataError
from tasks.shared.formats.rows import read_rows
from tasks.shared.formats.soft_targets import SoftTargets, row_key
from tasks.shared.model.encoding import Encoded, counted
from tasks.shared.model.head import check_head, output_head
from tasks.shared.model.loading import load_model, training_tokenizer
from tasks.shared.model.precision import DtypeSetting, chosen_dtype
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun, Upstream

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Logits(Training, Adapted, Taught):
    """Train on alpha T^2 D(teacher, student) + (1 - alpha) cross-entropy at answer tokens."""

    spec: ClassVar[Spec] = training_spec(
        summary="Soft targets: KL, reverse KL, JSD, skew KL or total variation; teacher in memory or stored top k",
        paper="Hinton et al. 2015, arXiv 1503.02531",
        ports={"teacher": Port((Kind.MODEL,), optional=True), "targets": Port((Kind.LOGITS,), optional=True)},
    )

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the soft targets; hard targets have 1 - alpha."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Softmax temperature of both distributions; stored targets must include it."""
    divergence: Divergence = "forward_kl"
    """Divergence between the teacher's and the student's distributions (`losses/soft.py` describes each)."""
    mix: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the first distribution in the mixture, for jsd and the skewed divergences; at 0 or 1 they would become KL or zero."""

    def plan_problems(
        self, where: str, inputs: Mapping[str, tuple[str, ...]], upstream: Mapping[str, Upstream]
    ) -> Iterator[ConfigError]:
        """Yield problems: not exactly one source of targets, or targets that do not fit."""
        sources = [port for port in ("teacher", "targets") if inputs.get(port)]
        if len(sources) != 1:
            got = " and ".join(sources) or "neither teacher nor targets"
            yield ConfigError(
                f"{where}.inputs", got, "one of them: a model in memory (teacher), or a logits step (targets)",
                f"{where}.inputs.teacher=models.teacher",
            )  # fmt: skip
        for name in inputs.get("targets", ()):
            step = upstream.get(name)
            if step is None:
                continue
            if step.inputs.get("data") != inputs.get("data"):
                got = (
                    f"targets of {', '.join(step.inputs.get('data', ()))}, data of {', '.join(inputs.get('data', ()))}"
                )
                yield ConfigError(
                    f"{where}.inputs", got, "the same data", f"{where}.inputs.data={step.inputs['data'][0]}"
                )
            turns = getattr(step.technique, "turns", self.turns)
            if turns != self.turns:
                yield ConfigError(
                    f"{where}.turns", f"{self.turns}, while {name} has targets for turns={turns}", "the same turns",
                    f"{where}.turns={turns}",
                )  # fmt: skip
            stored = getattr(step.technique, "temperatures", None)
            if stored is not None and self.temperature not in stored:
                yield ConfigError(
                    f"{where}.temperature", f"{self.temperature:g}",
                    f"one that {name} stores: {', '.join(f'{one:g}' for one in stored)}",
                    f"'steps.{name}.temperatures=[{','.join(f'{one:g}' for one in (*stored, self.temperature))}]'",
                )  # fmt: skip

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Train and write the model folder with loss.csv (`train_model`).

        Raises ModelError for a teacher of another tokenizer, DataError for rows without stored targets.
        """
        model, targets = inputs.one("model").path, inputs.get("targets")
        blend = Blend(self.alpha, self.temperature, self.divergence, self.mix)
        objective: Objective
        if targets is not None:
            objective = StoredTargets(SoftTargets(targets.path), model, blend)
        else:
            objective = OnlineTargets(inputs.one("teacher").path, model, blend, self.teacher_dtype)
        return train_model(self, model, read_rows(inputs.one("data").path / "train.jsonl"), objective, out, run)


class StoredTargets(Objective):
    """Targets of a `logits` step, found by the content of each conversation."""

    knob = "alpha and temperature"

    def __init__(self, targets: SoftTargets, student: Path, blend: Blend) -> None:
        self.targets, self.blend = targets, blend
        self.family = match_vocabularies(training_tokenizer(student).get_vocab(), targets.vocabulary)
        self.keys: list[str] = []
        self.missing = 0
        self.rows = 0

    @property
    def tail(self) -> float:
        """Mean probability mass outside the stored top-k tokens at this temperature."""
        return self.targets.tails.get(self.blend.temperature, 0.0)

    def attach(self, model: "PreTrainedModel", device: str) -> None:
        """Record the rows of the student's head, and warn if most of the mass is in the tail."""
        self.rows = int(model.get_output_embeddings().weight.shape[0])
        if self.tail > 0.5:
            log.warning(
                "at temperature %g, %.0f %% of the teacher's probability mass is outside its %d stored tokens and is learned only as a "
                "sum; use a lower temperature, or a larger k in the logits step",
                self.blend.temperature, 100 * self.tail, self.targets.k,
            )  # fmt: skip

    def label(self, rows: Sequence[Encoded]) -> list[Encoded]:
        """Add `row`, the conversation's index in `keys`.

        A trimmed vocabulary may split some text differently from the teacher; these conversations get hard targets.  With a whole
        vocabulary, a missing conversation was not among the teacher's, which is an error.
        """
        found = []
        for row in rows:
            ids, labels = (self.family.teacher_ids(row[name]) for name in ("input_ids", "labels"))
            key = row_key(ids, labels) if ids is not None and labels is not None else ""
            known = key in self.targets
            self.missing += not known
            found.append({**row, "row": len(self.keys)})
            self.keys.append(key if known else "")
        if self.missing and (self.family.same or self.missing == len(self.keys)):
            raise DataError(
                "inputs.targets", f"{self.missing} of {len(self.keys)} conversations have no stored targets",
                "targets made from the same data, with the same chat template", "give the logits step this step's data",
            )  # fmt: skip
        return found

    def terms(self, model: Any, batch: Batch, count: "Tensor | int | None") -> "dict[str, Tensor]":
        """Return the terms `soft` and `hard`."""
        import torch

        states, tokens = counted(last_hidden(model, batch), batch["labels"])
        parts = [self._read(row, batch["labels"][place]) for place, row in enumerate(batch["row"].tolist())]
        known, ids, logs = (torch.cat(column).to(states.device) for column in zip(*parts, strict=True))
        return blended_loss(states, output_head(model), tokens, known, Stored((ids, logs)), self.blend, count)

    def _read(self, row: int, labels: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
        """Read the stored targets of one conversation.

        Returns known (tokens,), ids (tokens, k), logs (tokens, k + 1); filler where a token has no target.
        """
        import torch

        tokens = int((labels[1:] >= 0).sum())
        if not self.keys[row]:
            ids = torch.arange(self.targets.k).expand(tokens, -1)
            return torch.zeros(tokens, dtype=torch.bool), ids, torch.zeros(tokens, self.targets.k + 1)
        ids, logs = self.targets.read(self.keys[row], self.blend.temperature)
        if not self.family.same or int(ids.max()) >= self.rows:
            ids, logs = without_absent(ids, logs, self.family.to_student)
        return torch.ones(tokens, dtype=torch.bool), ids, logs

    def figures(self) -> Mapping[str, float | int | str]:
        """Conversations with hard targets only, and the mean tail mass of the stored targets."""
        return {"tail": self.tail, **({"rows_without_targets": self.missing} if self.missing else {})}


class OnlineTargets(Objective):
    """A teacher in memory that computes targets for every batch."""

    knob = "alpha and temperature"

    def __init__(self, teacher: Path, student: Path, blend: Blend, dtype: DtypeSetting) -> None:
        self.source, self.blend, self.dtype = teacher, blend, dtype
        self.family = match_vocabularies(*(training_tokenizer(source).get_vocab() for source in (student, teacher)))
        self.teacher: Any = None
        self.columns: Tensor | None = None
        self.missing = 0

    def attach(self, model: "PreTrainedModel", device: str) -> None:
        """Load the teacher."""
        self.teacher = load_model(self.source, chosen_dtype(self.dtype, device), device).requires_grad_(False)
        check_head(self.teacher)
        rows = (int(one.get_output_embeddings().weight.shape[0]) for one in (model, self.teacher))
        columns = self.family.columns(*rows)
        self.columns = None if columns is None else columns.to(device)

    def detach(self, model: "PreTrainedModel") -> None:
        """Release the teacher."""
        self.teacher = None

    def label(self, rows: Sequence[Encoded]) -> list[Encoded]:
        """Add `teacher_ids` and `known` to the rows.

        A conversation with a token that the teacher lacks gets hard targets.
        """
        found = self.family.add_teacher_ids(rows)
        self.missing += sum(not row["known"] for row in found)
        return found

    def terms(self, model: Any, batch: Batch, count: "Tensor | int | None") -> "dict[str, Tensor]":
        """Return the terms `soft` and `hard`."""
        import torch

        labels = batch["labels"]
        states, tokens = counted(last_hidden(model, batch), labels)
        with torch.no_grad():
            expected, _ = counted(last_hidden(self.teacher, {**batch, "input_ids": batch["teacher_ids"]}), labels)
        known, _ = counted(batch["known"].view(-1, 1, 1).expand(*labels.shape, 1), labels)
        teacher = Online((expected,), output_head(self.teacher), self.columns)
        return blended_loss(states, output_head(model), tokens, known.view(-1).bool(), teacher, self.blend, count)

    def figures(self) -> Mapping[str, float | int | str]:
        """Return the number of conversations with hard targets only."""
        return {"rows_without_targets": self.missing} if self.missing else {}
