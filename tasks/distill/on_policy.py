"""On-policy distillation: a teacher scores the student's own answers token by token.

Source: GKD, Agarwal et al. 2024, arXiv 2306.13649, algorithm 1.

A student trained only on the teacher's answers never sees its own mistakes; here, it does.

The loop is this stage's, not TRL's.  In TRL 1.16, `DistillationTrainer` has no `lmbda`, computes logits at every position without
Triton, and validates on new samples each epoch, so that losses of epochs cannot be compared; `experimental.gkd` keeps both
models' logits of all positions, and divides the loss of samples by the number of tokens of the answers that they replaced.  The
divergence and the meaning of `beta` are the same.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.distill.losses.answers import row_shares
from tasks.distill.losses.mixed import Online
from tasks.distill.losses.soft import Divergence, divergence
from tasks.distill.training.forecast import forecast_training
from tasks.distill.training.loop import train_model
from tasks.distill.training.objective import Batch, Objective, last_hidden
from tasks.distill.training.options import Adapted, Taught
from tasks.distill.training.own_samples import row_draws, row_number, sample_answers
from tasks.distill.training.settings import Training, training_spec
from tasks.distill.vocabulary import match_vocabularies
from tasks.shared.errors import ConfigError, TechniqueError
from tasks.shared.forecast import ANSWER_TOKENS, GENERATION_COST, Forecast, Workload
from tasks.shared.formats.rows import read_rows
from tasks.shared.model.encoding import IGNORED, Encoded, collate, counted
from tasks.shared.model.head import check_head, output_head, sum_over_chunks
from tasks.shared.model.loading import load_model, training_tokenizer
from tasks.shared.model.precision import chosen_dtype
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun, Upstream

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class OnPolicy(Training, Adapted, Taught):
    """Train on the divergence from the teacher, on the student's own and the data's answers.

    The validation loss is the same divergence on the data's answers, which stay the same from epoch to epoch.
    """

    spec: ClassVar[Spec] = training_spec(
        summary="The student's own answers, scored token by token by a teacher (GKD)",
        paper="Agarwal et al. 2024, arXiv 2306.13649",
        ports={"teacher": Port((Kind.MODEL,))},
    )

    lmbda: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Fraction of the optimizer steps that train on the student's own answers, spread evenly; the others train on the data's."""
    beta: Annotated[float, Field(ge=0, le=1)] = 0.5
    """0: forward KL (mode-covering).  1: reverse KL (mode-seeking).  Between: generalized JSD."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampling temperature of the student's answers; distributions are compared at temperature 1."""
    max_new_tokens: Annotated[int, Field(gt=0)] = 96
    """Most tokens of a sampled answer.  Truncation does no harm, since each token is scored by itself."""

    def plan_problems(
        self, where: str, inputs: Mapping[str, tuple[str, ...]], upstream: Mapping[str, Upstream]
    ) -> Iterator[ConfigError]:
        """Yield problems: a teacher that is the student itself."""
        if inputs.get("teacher") and inputs.get("teacher") == inputs.get("model"):
            yield ConfigError(
                f"{where}.inputs.teacher", f"{inputs['teacher'][0]}, which is the student as well: nothing could be learned",
                "another model", f"{where}.inputs.teacher=models.teacher",
            )  # fmt: skip

    def forecast(self, work: Workload) -> Forecast:
        """Forecast a training with a teacher, and the sampling of the student's answers."""
        forecast, rows = forecast_training(self, work), work.rows.train * self.epochs * self.lmbda
        sampling = work.reading(work.size(), rows * GENERATION_COST * ANSWER_TOKENS)
        return replace(forecast, seconds=forecast.seconds + sampling)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Train and write the model folder with loss.csv (`train_model`).

        Raises ModelError for a teacher of another tokenizer, TechniqueError for answers beyond a model's maximum length.
        """
        model, teacher = inputs.one("model").path, inputs.one("teacher").path
        rows = read_rows(inputs.one("data").path / "train.jsonl")
        return train_model(self, model, rows, OwnAnswers(self, model, teacher, run.seed), out, run)


class OwnAnswers(Objective):
    """One term: the divergence from the teacher on the step's answers, sampled or from the data."""

    one_turn = True

    def __init__(self, settings: OnPolicy, student: Path, teacher: Path, seed: int) -> None:
        self.settings, self.source, self.seed = settings, teacher, seed
        tokenizer = training_tokenizer(student)
        self.end, self.pad = int(tokenizer.eos_token_id), int(tokenizer.pad_token_id)
        self.kind: Divergence = {0.0: "forward_kl", 1.0: "reverse_kl"}.get(settings.beta, "jsd")  # type: ignore[assignment]
        self.family = match_vocabularies(*(training_tokenizer(source).get_vocab() for source in (student, teacher)))
        self.teacher: Any = None
        self.columns: Tensor | None = None
        self.longest = self.missing = 0

    def label(self, rows: Sequence[Encoded]) -> list[Encoded]:
        """Add `prompt`, `row`, `teacher_ids` and `known` to the rows.

        prompt: number of tokens before the answer.  row: the conversation's index.

        Nothing
        is learned from a conversation with a token that the teacher lacks.
        """
        found = self.family.add_teacher_ids(rows)
        for row in found:
            row["prompt"] = next(place for place, label in enumerate(row["labels"]) if label != IGNORED)
            row["row"] = row_number(row["input_ids"])
        self.missing += sum(not row["known"] for row in found)
        self.longest = max([self.longest, *(row["prompt"] for row in found)])
        return found

    def attach(self, model: "PreTrainedModel", device: str) -> None:
        """Load the teacher.

        Raises TechniqueError if a prompt and its answer exceed either model's maximum length.
        """
        self.teacher = load_model(
            self.source, chosen_dtype(self.settings.teacher_dtype, device), device
        ).requires_grad_(False)
        check_head(self.teacher)
        heads = (int(part.get_output_embeddings().weight.shape[0]) for part in (model, self.teacher))
        columns = self.family.columns(*heads)
        self.columns = None if columns is None else columns.to(device)
        places = min(
            int(getattr(part.config.get_text_config(), "max_position_embeddings", None) or 2**31)
            for part in (model, self.teacher)
        )
        if self.longest + self.settings.max_new_tokens > places:
            raise TechniqueError(
                "max_new_tokens", f"{self.settings.max_new_tokens} after a prompt of {self.longest} tokens",
                f"at most {places} tokens together, the models' positions",
                f"max_new_tokens={max(1, places - self.longest)}",
            )  # fmt: skip

    def detach(self, model: "PreTrainedModel") -> None:
        """Release the teacher."""
        self.teacher = None

    def is_own(self, step: int) -> bool:
        """Return True if this step trains on the student's own answers.

        After any number of steps, the share of such steps is `lmbda` to within half a step.

        The first step is of the more frequent kind, so that a diverging loss is compared with its own kind.
        """
        share = self.settings.lmbda
        return math.floor((step + 1) * share + 0.5) > math.floor(step * share + 0.5)

    def terms(self, model: Any, batch: Batch, count: "Tensor | int | None") -> "dict[str, Tensor]":
        """Return one term, `divergence`."""
        import torch

        shares = row_shares(batch["labels"], count) * batch["known"]
        if model.training and self.is_own(self.step):
            batch = self.own(model, batch)
        with torch.no_grad():
            wanted = last_hidden(self.teacher, {**batch, "input_ids": batch["teacher_ids"]})
        states, _ = counted(last_hidden(model, batch), batch["labels"])
        expected, _ = counted(wanted, batch["labels"])
        teacher = Online((expected,), output_head(self.teacher), self.columns)
        weights = token_weights(batch["labels"], shares)

        def score(logits: "Tensor", weights: "Tensor", *rows: "Tensor") -> "Tensor":
            pair = teacher.pair(logits.float(), rows, 1.0)
            return (divergence(*pair, self.kind, self.settings.beta) * weights).sum().view(1)

        return {"divergence": sum_over_chunks(score, output_head(model), states, weights, *teacher.rows)[0]}

    def own(self, model: Any, batch: Batch) -> Batch:
        """Return the batch with the student's answers in place of the data's."""
        settings = self.settings
        prompts = [
            ids[:prompt].tolist() for ids, prompt in zip(batch["input_ids"], batch["prompt"].tolist(), strict=True)
        ]
        draws = row_draws(self.seed, self.step, batch["row"].tolist(), settings.max_new_tokens)
        answers = sample_answers(model, prompts, draws, settings.temperature, self.end, self.pad)
        rows = []
        for prompt, answer in zip(prompts, map(self._scorable, answers), strict=True):
            rows.append({"input_ids": [*prompt, *answer], "labels": [IGNORED] * len(prompt) + answer})
        made = collate(self.family.add_teacher_ids(rows), self.pad)
        return {name: tensor.to(batch["input_ids"].device) for name, tensor in made.items()}

    def _scorable(self, answer: list[int]) -> list[int]:
        """Truncate an answer before the first token that the teacher lacks (a padding row)."""
        known = self.family.to_teacher
        lacking = (place for place, token in enumerate(answer) if token >= len(known) or known[token] < 0)
        return answer[: next(lacking, len(answer))]

    def figures(self) -> Mapping[str, float | int | str]:
        """Return the number of conversations that could not be used."""
        return {"rows_without_targets": self.missing} if self.missing else {}


def token_weights(labels: "Tensor", shares: "Tensor") -> "Tensor":
    """Weight of each counted token: its row's share, spread over the row's counted tokens.

    labels: (batch, tokens).  shares: (batch,).  Returns (counted,), in the order of `counted`.  A student gains nothing
    from shorter or longer answers.
    """
    mask = labels[:, 1:] != IGNORED
    each = shares / mask.sum(dim=1).clamp_min(1)
    return each[:, None].expand(mask.shape)[mask]
