"""Low-rank adapters by peft, merged into the weights at the end.

Source: Hu et al. 2021, arXiv 2106.09685, section 4.1.
"""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.shared.errors import TechniqueError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Lora:
    """Adapters, trained instead of the weights; only they have gradients, moments, checkpoints."""

    rank: Annotated[int, Field(ge=0)] = 0
    """Rank of the adapters; 0: no adapters, all weights are trained."""
    alpha: Annotated[int, Field(gt=0)] = 32
    """Scale of the adapters: their output is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout rate of the adapters' inputs."""
    targets: tuple[str, ...] = ()
    """Names of linear layers to adapt (q_proj, down_proj, ...); empty: all but the head."""


def adapt(model: "PreTrainedModel", lora: Lora) -> Any:
    """Return the model with zero-initialized adapters and frozen weights; unchanged at rank 0.

    Raises TechniqueError for unknown layer names, and for head and embedding: our losses apply the head's own weight.
    """
    if not lora.rank:
        return model
    from peft import LoraConfig, get_peft_model

    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    linear = {
        name.rpartition(".")[2] for name, module in model.named_modules() if _is_linear(module) and module not in ends
    }
    if unknown := sorted(set(lora.targets) - linear):
        raise TechniqueError(
            "lora.targets",
            ", ".join(unknown),
            f"some of: {', '.join(sorted(linear))}",
            "correct the names, or leave targets empty",
        )
    adapted = get_peft_model(
        model,
        LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=sorted(lora.targets or linear),
            bias="none", task_type="CAUSAL_LM", fan_in_fan_out=is_transposed(model),
        ),
    )  # fmt: skip
    adapted.peft_config["default"].base_model_name_or_path = None  # saving would look it up on the hub
    return adapted


def is_transposed(model: Any) -> bool:
    """Return True if the layers are GPT-2's Conv1D, whose weights are (in, out)."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in model.modules())


def merge(model: Any) -> Any:
    """Merge adapters into the weights and return the plain model; without adapters, unchanged."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def _is_linear(module: Any) -> bool:
    import torch
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, torch.nn.Linear | Conv1D)
