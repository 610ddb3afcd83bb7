"""How much channels, heads and neurons do, by their activations on calibration text (Muralidharan et al. 2024, arXiv 2407.14679).

Section 2.2 there: heads by their outputs, neurons by theirs, channels by the outputs of the norms.  Tokens add up as squares here.
"""

from typing import TYPE_CHECKING, Any

from tasks.prune.selection.picks import Scores
from tasks.prune.selection.shape import Shape
from tasks.shared.errors import TechniqueError
from tasks.shared.model.calibration import batches
from tasks.shared.model.layers import decoder_layers
from tasks.shared.progress import track

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm")


def energy(values: "Tensor", mask: "Tensor", parts: int) -> "Tensor":
    """Sum of squares by part, over the real tokens.

    values: (batch, length, parts * width).  mask: (batch, length).  Returns (parts,), float64.
    """
    squares = values.double().square() * mask[..., None]
    return squares.view(-1, parts, values.shape[-1] // parts).sum((0, 2))


def measure(model: "PreTrainedModel", shape: Shape, ids: list[list[int]], batch_size: int, pad_id: int) -> Scores:
    """Scores of all parts over conversations, by hooks, one forward pass per batch.

    Raises TechniqueError for layers without self_attn.o_proj or mlp.down_proj (mixtures of experts).
    """
    import torch

    layers = decoder_layers(model)
    sums = {
        "hidden": torch.zeros(1, shape.hidden, dtype=torch.float64),
        "heads": torch.zeros(shape.layers, shape.heads, dtype=torch.float64),
        "neurons": torch.zeros(shape.layers, shape.intermediate, dtype=torch.float64),
    }
    mask: Tensor = torch.empty(0)

    def add(kind: str, row: int, values: Any) -> None:
        sums[kind][row] += energy(values, mask, sums[kind].shape[1]).cpu()

    handles = []
    for row, layer in enumerate(layers):
        parts: Any = layer
        if not (hasattr(parts.self_attn, "o_proj") and hasattr(parts.mlp, "down_proj")):
            raise TechniqueError(
                type(layer).__name__, "no self_attn.o_proj or no mlp.down_proj", "a dense decoder layer", "leave its width as it is"
            )  # fmt: skip
        for name, part in (("heads", parts.self_attn.o_proj), ("neurons", parts.mlp.down_proj)):
            handles.append(part.register_forward_pre_hook(lambda _, args, name=name, row=row: add(name, row, args[0])))
        norms = [getattr(parts, name) for name in NORMS if hasattr(parts, name)]
        handles += [norm.register_forward_hook(lambda _, __, output: add("hidden", 0, output)) for norm in norms]
    try:
        with torch.inference_mode():
            for batch in track(batches(ids, batch_size, pad_id), "activations", -(-len(ids) // batch_size)):
                batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
                mask = batch["attention_mask"]
                model.base_model(**batch, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return Scores(sums["hidden"][0], sums["heads"], sums["neurons"])
