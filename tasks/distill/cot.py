"""Distillation of reasoning: the student learns the teacher's reasoning and its answer.

Source: Hsieh et al. 2023, arXiv 2305.02301, section 3.2.

The reasoning is in `Row.reasoning`: from a teacher (traces with `reasoning.ask`), from the support corpus (rows with more than one
step), or from your own files.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.distill.losses.answers import answer_loss
from tasks.distill.training.loop import train_model
from tasks.distill.training.objective import Batch, Objective, last_hidden
from tasks.distill.training.options import Adapted, Packed, Weighed
from tasks.distill.training.settings import Training, training_spec
from tasks.shared.errors import DataError
from tasks.shared.formats.rows import Message, Row, read_rows
from tasks.shared.model.encoding import IGNORED, Encoded, encode
from tasks.shared.model.head import output_head
from tasks.shared.technique import Inputs, Metrics, Spec, StepRun
from tasks.shared.text.reasoning import CLOSE, OPEN, join_reasoning, reasoning_prefix

if TYPE_CHECKING:
    from torch import Tensor

RATIONALE = "#rationale"
"""Suffix of the id of a row whose whole answer is reasoning."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class CoT(Adapted, Weighed, Packed, Training):
    """Fine-tune a model on reasoning and answers.

    joint: one target, the reasoning between <think> and </think>, then the answer.  The model then writes reasoning at inference,
    which needs room (`max_new_tokens`) and which graders remove (tasks/shared/text/reasoning.py).
    two: two rows per conversation, one with the answer and one that, after `instruction`, has the reasoning.  At inference the model
    answers at once, as fast as without reasoning.
    """

    tasks: Literal["joint", "two"] = "joint"
    """joint: one target, reasoning then answer.  two: two tasks, one for the answer and one for the reasoning."""
    rationale_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of a reasoning token relative to an answer token.  The paper weights the tasks' means instead: its weight equals this one
    times reasoning tokens / answer tokens, both of which are in the step's table."""
    instruction: Annotated[str, Field(pattern=r"\S")] = "Explain step by step how to answer this."
    """Text appended to questions that ask for the reasoning (`two`); questions that ask for the answer are unchanged."""
    without_reasoning: Literal["keep", "drop"] = "keep"
    """Handling of rows without reasoning: train on their answers only, or leave them out."""

    spec: ClassVar[Spec] = training_spec(
        summary="Fine-tuning on reasoning and answers: reasoning first, or as a second task so that the student answers at once",
        paper="Hsieh et al. 2023, arXiv 2305.02301",
    )

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Train and write the model folder with loss.csv (`train_model`).

        Raises DataError if no row has reasoning.
        """
        file = inputs.one("data").path / "train.jsonl"
        rows = read_rows(file)
        reasoned = [row for row in rows if row.reasoning.strip()]
        if not reasoned:
            raise DataError(
                str(file),
                f"none of {len(rows)} rows has `reasoning`",
                "some that do",
                "a traces step with reasoning.ask=request (or native, for a reasoning model), or distill/sft",
            )
        kept = rows if self.without_reasoning == "keep" else reasoned
        targets = joint_rows(kept) if self.tasks == "joint" else two_rows(kept, self.instruction)
        metrics = train_model(self, inputs.one("model").path, targets, Rationales(self.rationale_weight), out, run)
        return {**metrics, "with_reasoning": len(reasoned), "without_reasoning": len(rows) - len(reasoned)}


class Rationales(Objective):
    """Separate cross-entropies of answers and reasoning.

    Both are divided by the number of tokens of the whole step, so that at weight 1 their sum is plain fine-tuning on both.
    """

    knob = "rationale_weight"
    one_turn = True

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.tokens = {"answer_tokens": 0, "reasoning_tokens": 0}

    def encode(self, rows: Sequence[Row], tokenizer: Any, max_tokens: int) -> list[Encoded]:
        """Encode rows, with `rationale`: 1 for each reasoning token, 0 for all others."""
        encoded = encode(rows, tokenizer, max_tokens)
        marked = [{**one, "rationale": mark(row, one, tokenizer)} for row, one in zip(rows, encoded, strict=True)]
        for one in marked:
            thought = sum(one["rationale"])
            self.tokens["reasoning_tokens"] += thought
            self.tokens["answer_tokens"] += sum(label != IGNORED for label in one["labels"]) - thought
        return marked

    def terms(self, model: Any, batch: Batch, count: "Tensor | int | None") -> "dict[str, Tensor]":
        """Return two terms, `answer` and `rationale`."""
        labels, weights = batch["labels"], batch.get("weights")
        hidden, head = last_hidden(model, batch), output_head(model)
        whole = (labels[:, 1:] != IGNORED).sum().clamp(min=1) if count is None else count
        thought = batch["rationale"].bool()
        answer = answer_loss(hidden, head, labels.masked_fill(thought, IGNORED), whole, weights)
        rationale = answer_loss(hidden, head, labels.masked_fill(~thought, IGNORED), whole, weights)
        return {"answer": answer, "rationale": self.weight * rationale}

    def figures(self) -> Mapping[str, float | int | str]:
        """Return the numbers of reasoning and answer tokens, validation included."""
        return self.tokens


def mark(row: Row, encoded: Encoded, tokenizer: Any) -> list[int]:
    """Mask of the labeled tokens that belong to reasoning, 1 or 0 per token.

    In a rationale row that is the whole target, elsewhere everything up to </think> and its line break.  An empty thought, which a
    template may put before an answer without reasoning, is part of the answer.
    """
    spoken = [place for place, label in enumerate(encoded["labels"]) if label != IGNORED]
    length = len(spoken)
    if not row.id.endswith(RATIONALE):
        ids = [encoded["labels"][place] for place in spoken]
        end = len(reasoning_prefix(tokenizer.decode(ids))) if reasoning_prefix(row.answer) else 0
        length = bisect_right(range(len(ids)), end, key=lambda count: len(tokenizer.decode(ids[: count + 1])))
    thought = set(spoken[:length])
    return [int(place in thought) for place in range(len(encoded["labels"]))]


def joint_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with reasoning before their answers."""
    return [answering(row, join_reasoning(_plain(row.reasoning), row.answer)) for row in rows]


def two_rows(rows: Sequence[Row], instruction: str) -> list[Row]:
    """Return all rows, each one with reasoning followed by a row that asks for the reasoning.

    Both have the same phrasing group, so that no split separates them.
    """
    found = []
    for row in rows:
        found.append(row)
        if row.reasoning.strip():
            *earlier, question, _ = row.messages
            before = [message.model_copy(update={"learn": False}) for message in earlier]  # learned in the row above
            asked = Message(role=question.role, content=f"{question.content}\n\n{instruction}")
            explained = row.model_copy(
                update={"id": row.id + RATIONALE, "messages": (*before, asked, row.messages[-1])}
            )
            found.append(answering(explained, _plain(row.reasoning)))
    return found


def answering(row: Row, content: str) -> Row:
    """Return the row with another last message."""
    return row.with_answer(Message(role="assistant", content=content))


def _plain(reasoning: str) -> str:
    """Remove marks within the reasoning, which would end it early."""
    return reasoning.replace(OPEN, "").replace(CLOSE, "").strip()
