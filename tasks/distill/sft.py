"""Supervised fine-tuning on traces (response distillation).

Source: Kim and Rush 2016, arXiv 1606.07947, section 3.2.

The student learns the teacher's accepted answers; only the tokens of the final answer contribute to the loss.
"""

from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from tasks.distill.training.loop import train_model
from tasks.distill.training.objective import Answers
from tasks.distill.training.options import Adapted, Packed, Weighed
from tasks.distill.training.settings import Training, training_spec
from tasks.shared.formats.rows import read_rows
from tasks.shared.technique import Inputs, Metrics, Spec, StepRun


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SFT(Adapted, Weighed, Packed, Training):
    """Fine-tune a model on the answers of a traces artifact."""

    spec: ClassVar[Spec] = training_spec(
        summary="Fine-tuning on the answers with TRL: early stopping, resumable, packing, LoRA, weights for teacher and gold rows",
        paper="Kim and Rush 2016, arXiv 1606.07947",
    )

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Train and write the model folder with loss.csv (`train_model`)."""
        rows = read_rows(inputs.one("data").path / "train.jsonl")
        return train_model(self, inputs.one("model").path, rows, Answers(), out, run)
