"""Settings of all training techniques."""

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.distill.training.forecast import forecast_training
from tasks.distill.training.gradual import Gradual
from tasks.distill.training.qat import Qat
from tasks.shared.forecast import Forecast, Workload
from tasks.shared.model.encoding import TooLong
from tasks.shared.model.families import CONV1D, is_mixture
from tasks.shared.model.grids import Grid
from tasks.shared.model.turns import Turns
from tasks.shared.technique import Kind, Plot, Port, Refusal, Spec

LOSS_PLOT = Plot(
    file="loss.csv",
    title="loss",
    x="step",
    y=("train_loss", "validation_loss"),
    x_label="optimizer step",
    y_label="loss (nats per token)",
)


def training_spec(summary: str, paper: str, ports: Mapping[str, Port] | None = None) -> Spec:
    """Return the spec of a training technique, from a dense model and rows to a dense model.

    ports: inputs besides `model` and `data`.
    """
    return Spec(
        summary=summary,
        ports={"model": Port((Kind.MODEL,)), "data": Port((Kind.TRACES, Kind.CORPUS)), **(ports or {})},
        produces=Kind.MODEL,
        libraries=("torch", "transformers", "trl", "accelerate", "peft", "tokenizers", "gguf"),
        unkeyed=frozenset({"gradient_checkpointing"}),  # recomputed activations are bit-identical
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
    """Passes over the training rows, at most."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """Peak learning rate of AdamW."""
    schedule: Literal["cosine", "linear", "constant_with_warmup", "warmup_stable_decay"] = "cosine"
    """Decay of the learning rate after the warm-up.  warmup_stable_decay keeps it at its peak and decays over the last fifth of the
    steps, as 1 minus the square root of the fraction done (Hägele et al. 2024, arXiv 2405.18392)."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Fraction of the steps with a rising learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay."""
    batch_size: Annotated[int, Field(gt=0)] = 16
    """Conversations per forward pass, over all processes: must be a multiple of `runtime.processes`, which does not change the result."""
    accumulation: Annotated[int, Field(gt=0)] = 1
    """Forward passes per optimizer step."""
    max_tokens: Annotated[int, Field(gt=8)] = 512
    """Most tokens of a conversation; longer ones are never truncated, since truncated answers would be learned."""
    too_long: TooLong = "stop"
    """What to do about longer conversations: stop, or drop them with a warning that counts them."""
    turns: Turns = "all"
    """Turns of the assistant to learn in a conversation: all, or the last only.  A message's own `learn: true` or `learn: false` takes
    precedence.  A template that rewrites earlier turns (Qwen3 drops their thoughts) makes each learned turn a sequence of its own."""
    validation: Annotated[float, Field(ge=0, lt=0.5)] = 0.08
    """Fraction of phrasing groups held out for validation to detect overfitting; 0 trains on all rows and keeps the last epoch."""
    patience: Annotated[int, Field(ge=0)] = 2
    """Stop after this many epochs without a better validation loss; 0 trains all epochs. The best epoch is kept either way."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of the forward and backward pass; the weights stay float32.  auto: bfloat16 where the hardware is fast in it, else float32.
    float16, with loss scaling, is for GPUs without bfloat16 (Volta, Turing), not for CPUs."""
    frozen_layers: Annotated[int, Field(ge=0)] = 0
    """Number of first layers to freeze, together with the embedding and a head tied to it; the backward pass ends there.

    Lower layers hold general language and format; facts and answers are learned in the layers above.
    """
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory for about 30 % more time, or up to 50 % on a CPU, where freed memory is
    returned at once (docs/LOG.md)."""

    early_step: Annotated[int, Field(ge=0)] = 0
    """Optimizer step whose weights are kept as well, in the folder `early` of the artifact, for `prune/rewind`; 0 keeps none."""
    qat: Qat = field(default_factory=Qat)
    """Quantization-aware training: the linear layers compute with weights on the grid on which they will be served.  The model is then
    written in float32, so that weights are exactly on it."""

    gradual: Gradual = field(default_factory=Gradual)
    """Gradual pruning: more and more weights are masked while the others are trained."""

    @property
    def weight_grid(self) -> Grid | None:
        """Grid of the written model's linear layers; None without quantization-aware training."""
        return self.qat.weight_grid

    def check_widths(self, widths: Mapping[str, int]) -> None:
        """Refuse groups of quantization-aware training that do not divide a known width."""
        if widths:
            self.qat.fitting_grids(widths)

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse families with matrices that would not be rounded, or not be pruned, in training."""
        if self.gradual.sparsity and is_mixture(config):
            return Refusal(
                "its experts are stacked in one tensor, which gradual pruning does not mask", "gradual.sparsity=0"
            )
        if self.weight_grid is None:
            return None
        if config.get("model_type") in CONV1D:
            return Refusal("its matrices are Conv1D, which are not rounded in training", "qat.grid=none")
        if is_mixture(config):
            return Refusal(
                "its experts are not linear layers of their own, and not rounded in training", "qat.grid=none"
            )
        return None

    def forecast(self, work: Workload) -> Forecast:
        """Forecast a training on all rows for the maximum number of epochs."""
        return forecast_training(self, work)
