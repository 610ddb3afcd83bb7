"""Linear layers of a model: those that quantizers store as small integers."""

from typing import TYPE_CHECKING

from tasks.shared.errors import TechniqueError
from tasks.shared.model.widths import shortened

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def head_names(model: "PreTrainedModel") -> list[str]:
    """Names of the output head, which stays dense: small models tie it to the embedding."""
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if module is head]


def input_sizes(model: "PreTrainedModel") -> dict[str, int]:
    """Return the input size of every quantized linear layer, by name: all but the head.

    Raises TechniqueError if the model has matrices besides them and its embeddings, which would stay dense unnoticed.
    """
    from torch.nn import Embedding, Linear

    linear = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    known = {id(module.weight) for module in model.modules() if isinstance(module, Linear | Embedding)}
    loose = [name for name, weight in model.named_parameters() if weight.dim() > 1 and id(weight) not in known]
    if loose:
        raise TechniqueError(
            type(model).__name__,
            f"{len(loose)} matrices outside of torch.nn.Linear: {shortened(loose)}",
            "a transformer whose layers are torch.nn.Linear",
            "export/gguf, or leave the model dense",
        )
    heads = head_names(model)
    return {name: module.in_features for name, module in linear.items() if name not in heads}
