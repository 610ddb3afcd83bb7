"""Soft targets across tokenizers: ULD as in TRL's GOLD.

Source: Boizard et al. 2024, arXiv 2402.12030.

Each model reads the conversation in its own chat format and tokens; the answer's text is the same, and its tokens are aligned
by their bytes.  The loss is TRL's class (`losses/universal.py`), but the loop is this stage's: TRL 1.16's `GOLDTrainer` gives
the teacher its prompt in the student's markup, and averages over the rows of a batch, so that accumulation changes the loss.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.distill.losses.answers import answer_loss, row_shares
from tasks.distill.losses.universal import Alignment, Offsets, Side, UniversalLoss, answer_offsets
from tasks.distill.training.loop import train_model
from tasks.distill.training.objective import Batch, Objective, last_hidden
from tasks.distill.training.options import Adapted, Taught
from tasks.distill.training.settings import Training, training_spec
from tasks.shared.errors import ConfigError, TechniqueError
from tasks.shared.formats.rows import Row, read_rows
from tasks.shared.model.encoding import IGNORED, Encoded, collate, encode
from tasks.shared.model.head import check_head, output_head
from tasks.shared.model.loading import load_model, training_tokenizer
from tasks.shared.model.precision import chosen_dtype
from tasks.shared.model.prompts import learned_turn
from tasks.shared.model.turns import examples
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun, Upstream

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
UNLIMITED = 2**31
"""Limit in tokens for encoding with the teacher, in effect none: the student's `max_tokens` limits the rows."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Gold(Training, Adapted, Taught):
    """Train on the answers and on the distance to a teacher with any tokenizer."""

    spec: ClassVar[Spec] = training_spec(
        summary="Soft targets of a teacher with another tokenizer (TRL's GOLD)",
        paper="Boizard et al. 2024, arXiv 2402.12030",
        ports={"teacher": Port((Kind.MODEL,))},
    )

    hard_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the answers' cross-entropy."""
    soft_weight: Annotated[float, Field(ge=0)] = 1.5
    """Weight of the distance from the teacher; 1.5 is the paper's."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Softmax temperature of both distributions."""
    alignment: Alignment = "bytes"
    """Alignment of the two models' tokens: at bytes where both models end a token (byte-level BPE), or by position."""
    hybrid: bool = True
    """Compare tokens in both vocabularies directly, and only the others by sorted probabilities."""

    def plan_problems(
        self, where: str, inputs: Mapping[str, tuple[str, ...]], upstream: Mapping[str, Upstream]
    ) -> Iterator[ConfigError]:
        """Yield problems: a teacher without weight."""
        if not self.soft_weight:
            yield ConfigError(f"{where}.soft_weight", "0", "above 0", f"{where}.soft_weight=1.5, or distill/sft")

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Train and write the model folder with loss.csv (`train_model`).

        Raises ModelError for a tokenizer that `alignment` cannot use, TechniqueError for `hybrid` without tokens in common.
        """
        model, teacher = inputs.one("model").path, inputs.one("teacher").path
        rows = read_rows(inputs.one("data").path / "train.jsonl")
        return train_model(self, model, rows, OtherTokens(self, model, teacher, rows), out, run)


@dataclass(frozen=True)
class Twin:
    """A conversation in the teacher's tokens, with both models' token offsets in the answer.

    starts: numbers of the student's and of the teacher's tokens before the answer.
    offsets: byte offsets of the student's and of the teacher's answer tokens.
    """

    ids: list[int]
    starts: tuple[int, int]
    offsets: tuple[Offsets, Offsets]


class OtherTokens(Objective):
    """Hard labels, and the distance to a teacher with its own tokens."""

    knob = "hard_weight and soft_weight"
    one_turn = True

    def __init__(self, settings: Gold, student: Path, teacher: Path, rows: Sequence[Row]) -> None:
        self.settings, self.source = settings, teacher
        self.tokenizers = training_tokenizer(student), training_tokenizer(teacher)
        if self.tokenizers[0].get_vocab() == self.tokenizers[1].get_vocab():
            log.warning(
                "the teacher has the student's tokens: distill/logits compares them directly, which is a stronger signal"
            )
        apart = [examples(rows, tokenizer, settings.turns, apart=True) for tokenizer in self.tokenizers]
        mine, theirs = (
            encode(part, tokenizer, UNLIMITED) for part, tokenizer in zip(apart, self.tokenizers, strict=True)
        )
        if len(mine) != len(theirs):
            raise TechniqueError(
                "inputs.teacher", "its chat template joins turns that the student's keeps apart, or the other way round",
                "templates that agree on the turns", "turns=last, or join the turns in the data",
            )  # fmt: skip
        self.twins = {
            tuple(own["input_ids"]): self._twin(row, own, other)
            for row, own, other in zip(apart[0], mine, theirs, strict=True)
        }
        self.longest = max(len(row["input_ids"]) for row in theirs)
        self.batched: list[Twin] = []
        self.teacher: Any = None

    def _twin(self, row: Row, mine: Encoded, theirs: Encoded) -> Twin:
        spoken = [[token for token in side["labels"] if token != IGNORED] for side in (mine, theirs)]
        if self.settings.alignment == "bytes":
            heads = (learned_turn(tokenizer, row.chat, row.tools).head for tokenizer in self.tokenizers)
            sides = zip(self.tokenizers, spoken, heads, strict=True)
            first, second = (answer_offsets(tokenizer, ids, row.answer.strip(), head) for tokenizer, ids, head in sides)
        else:
            first, second = ([[0, 0]] * len(side) for side in spoken)
        return Twin(
            theirs["input_ids"],
            (len(mine["input_ids"]) - len(first), len(theirs["input_ids"]) - len(second)),
            (first, second),
        )

    def label(self, rows: Sequence[Encoded]) -> list[Encoded]:
        """Add `row`, the conversation's index in `batched`."""
        start = len(self.batched)
        self.batched += [self.twins[tuple(row["input_ids"])] for row in rows]
        return [{**row, "row": start + place} for place, row in enumerate(rows)]

    def attach(self, model: "PreTrainedModel", device: str) -> None:
        """Load the teacher and TRL's loss.

        Raises TechniqueError if a conversation exceeds either model's maximum length.
        """
        self.teacher = load_model(
            self.source, chosen_dtype(self.settings.teacher_dtype, device), device
        ).requires_grad_(False)
        check_head(self.teacher)
        places = getattr(self.teacher.config.get_text_config(), "max_position_embeddings", None) or UNLIMITED
        if self.longest > places:
            raise TechniqueError(
                "inputs.teacher", f"a conversation takes {self.longest} of its tokens, it has {places} positions",
                "a teacher that can read every row", "leave out the longest rows, or use another teacher",
            )  # fmt: skip
        settings = self.settings
        for part, tokenizer in zip((model, self.teacher), self.tokenizers, strict=True):
            last, logits = max(tokenizer.get_vocab().values()), output_head(part).vocabulary  # type: ignore[attr-defined]
            if settings.hybrid and last >= logits:
                raise TechniqueError(
                    "hybrid", f"a tokenizer that goes up to {last}, and {logits} logits", "a logit for each token",
                    "hybrid=false",
                )  # fmt: skip
        self.loss = UniversalLoss(*self.tokenizers, settings.alignment, settings.hybrid, settings.temperature, device)

    def detach(self, model: "PreTrainedModel") -> None:
        """Release the teacher."""
        self.teacher = None

    def terms(self, model: Any, batch: Batch, count: "Tensor | int | None") -> "dict[str, Tensor]":
        """Return the terms `hard` and `soft`, except those of weight 0."""
        import torch

        settings, labels = self.settings, batch["labels"]
        hidden, found = last_hidden(model, batch), {}
        if settings.hard_weight:
            found["hard"] = settings.hard_weight * answer_loss(hidden, output_head(model), labels, count)
        if settings.soft_weight:
            twins = [self.batched[row] for row in batch["row"].tolist()]
            apart = self._distances(model, hidden, batch, twins)
            found["soft"] = settings.soft_weight * (torch.stack(apart) * row_shares(labels, count)).sum()
        return found

    def _distances(self, model: Any, hidden: "Tensor", batch: Batch, twins: Sequence[Twin]) -> "list[Tensor]":
        """Distance of each row; logits are recomputed in the backward pass, one row at a time."""
        import torch
        from torch.utils.checkpoint import checkpoint

        device = hidden.device
        theirs = collate([{"input_ids": twin.ids} for twin in twins], self.tokenizers[1].pad_token_id)
        with torch.no_grad():
            wanted = last_hidden(self.teacher, {name: tensor.to(device) for name, tensor in theirs.items()})
        heads = output_head(model), output_head(self.teacher)

        def distance(states: "Tensor", expected: "Tensor", *rest: "Tensor") -> "Tensor":
            with torch.no_grad():
                target = heads[1](expected).float()
            return self.loss(Side(heads[0](states).float(), *rest[:2]), Side(target, *rest[2:]))

        found = []
        for row, twin in enumerate(twins):
            first = twin.starts[0] - 1
            mine = slice(first, first + 1 + len(twin.offsets[0]))
            other = slice(twin.starts[1] - 1, len(twin.ids))
            places = [torch.tensor([[0, 0], *offsets], device=device) for offsets in twin.offsets]
            rest = [batch["input_ids"][row, mine], places[0], torch.tensor(twin.ids[other], device=device), places[1]]
            found.append(checkpoint(distance, hidden[row, mine], wanted[row, other], *rest, use_reentrant=False))
        return found
