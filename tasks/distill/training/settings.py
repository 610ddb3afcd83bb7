"""Settings that every way of training has."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.distill.training.forecast import forecast_training
from tasks.shared.forecast import Forecast, Workload
from tasks.shared.technique import Kind, Plot, Port, Spec

LOSS_PLOT = Plot(
    file="loss.csv",
    title="loss",
    x="step",
    y=("train_loss", "validation_loss"),
    x_label="optimizer step",
    y_label="loss (nats per token)",
)


def training_spec(summary: str, paper: str, ports: Mapping[str, Port] | None = None) -> Spec:
    """The spec of a training technique: a dense model and rows in, a dense model out.

    ports: inputs besides `model` and `data`.
    """
    return Spec(
        summary=summary,
        ports={"model": Port((Kind.MODEL,)), "data": Port((Kind.TRACES, Kind.CORPUS)), **(ports or {})},
        produces=Kind.MODEL,
        libraries=("torch", "transformers", "trl", "accelerate", "peft", "tokenizers", "gguf"),
        unkeyed=frozenset({"gradient_checkpointing"}),  # recomputed activations equal the first ones bit for bit
        distributed=True,
        device="accelerator",
        accepts="dense",
        gives="dense",
        plots=(LOSS_PLOT,),
        paper=paper,
    )


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Training:
    """Training settings that all techniques of this stage inherit."""

    spec: ClassVar[Spec]

    epochs: Annotated[float, Field(gt=0)] = 6
    """Passes over the training rows at the most."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """Peak step size of AdamW."""
    schedule: Literal["cosine", "linear", "constant_with_warmup", "warmup_stable_decay"] = "cosine"
    """How the step size falls after the warm-up.  warmup_stable_decay: it stays at its peak until the last fifth of the steps, and falls
    there with the root of the share that is over (Hägele et al. 2024, arXiv 2405.18392)."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps over which the step size rises."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay."""
    batch_size: Annotated[int, Field(gt=0)] = 16
    """Conversations per forward pass, over all processes: `runtime.processes` has to divide it, and does not change what comes out."""
    accumulation: Annotated[int, Field(gt=0)] = 1
    """Forward passes per optimizer step."""
    max_tokens: Annotated[int, Field(gt=8)] = 512
    """Longer conversations are refused, not cut: a cut answer teaches cut answers."""
    validation: Annotated[float, Field(ge=0, lt=0.5)] = 0.08
    """Share of phrasing groups kept from training to watch for overfitting; 0 trains on all and stops at the last epoch."""
    patience: Annotated[int, Field(ge=0)] = 2
    """Stop after this many epochs without a better validation loss; 0 trains all epochs. The best epoch is kept either way."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of the forward and backward pass; the weights stay float32.  auto: bfloat16 where the processor has it, else float32.
    float16, with a scaled loss, is for GPUs that have no bfloat16 (Volta, Turing), and for no CPU."""
    frozen_layers: Annotated[int, Field(ge=0)] = 0
    """Leave the embedding (and a head tied to it) and this many first layers as they are: the backward pass ends there.

    Language and form sit low in a model and are kept; facts and answers are learned in the layers above.
    """
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about 30 % more time; on a CPU, where freed memory then goes back
    at once, up to 50 % (docs/LOG.md)."""

    def forecast(self, work: Workload) -> Forecast:
        """Forecast a training on all rows, for as many epochs as are allowed."""
        return forecast_training(self, work)
