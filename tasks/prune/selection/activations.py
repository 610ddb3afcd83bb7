"""Activations of channels, heads and neurons on calibration text.

Source: Muralidharan et al. 2024, arXiv 2407.14679, section 2.2: heads by their outputs, neurons by theirs, channels by the outputs
of the norms.  Unlike there, tokens are aggregated as a sum of squares.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

from tasks.prune.selection.importance import Moments
from tasks.prune.selection.losses import text_loss
from tasks.prune.selection.picks import Scores
from tasks.prune.selection.shape import Shape
from tasks.shared.errors import TechniqueError
from tasks.shared.model.activations import collect
from tasks.shared.model.calibration import batches
from tasks.shared.model.head import check_head
from tasks.shared.model.layout import decoder_layers, find_layout, part_of
from tasks.shared.progress import track

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

Axis = Literal["hidden", "heads", "neurons"]
"""Units that can go: channels of the hidden state, or units of a block."""
BlockAxis = Literal["heads", "neurons"]
"""Units that enter the last projection of a block: of attention, or of the feed-forward network."""
Gate = Callable[["Tensor"], "Tensor"]
"""Multiplies values with factors of 1, one for each unit."""
Hook = Callable[[Gate], Any]
"""Attaches a gate to the model, and returns the handle that removes it."""
STATES = "hidden_states"
"""Name of a block's input, where it is passed by name."""
NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm")


def energy(values: "Tensor", mask: "Tensor", parts: int) -> "Tensor":
    """Sum of squares per part, over the tokens without padding.

    values: (batch, length, parts * width).
    mask: (batch, length), 1 on real tokens.
    Returns (parts,), float64.
    """
    squares = values.double().square() * mask[..., None]
    return squares.view(-1, parts, values.shape[-1] // parts).sum((0, 2))


def channel_sums(values: "Tensor", mask: "Tensor") -> "Tensor":
    """Sum of the values of each channel, over the tokens without padding.

    values: (batch, length, channels).
    mask: (batch, length), 1 on real tokens.
    Returns (channels,), float64.
    """
    return (values.double() * mask[..., None]).sum((0, 1))


def second_moments(values: "Tensor", mask: "Tensor", parts: int) -> "Tensor":
    """Sum of outer products per part, over the tokens without padding.

    values: (batch, length, parts * width).
    mask: (batch, length), 1 on real tokens.
    Returns (parts, width, width), float64; its trace is the part's `energy`.
    """
    if parts == values.shape[-1]:
        return energy(values, mask, parts)[:, None, None]
    states = (values.double() * mask[..., None]).view(-1, parts, values.shape[-1] // parts).transpose(0, 1)
    return states.transpose(1, 2) @ states


def last_projections(model: "PreTrainedModel", axis: BlockAxis) -> "list[Module]":
    """Return the last projection of each layer's attention or feed-forward block.

    Raises TechniqueError for layers without one (mixtures of experts).
    """
    layout = find_layout(model)
    place = layout.attention_out if axis == "heads" else layout.feed_forward_out
    found = [part_of(layer, place) for layer in decoder_layers(model)]
    if None in found:
        raise TechniqueError(
            type(decoder_layers(model)[0]).__name__, f"no {place}", "a dense decoder layer", "leave its width as it is"
        )
    return found


def measure(model: "PreTrainedModel", shape: Shape, ids: list[list[int]], batch_size: int, pad_id: int) -> Scores:
    """Score all channels, heads and neurons on conversations, one forward pass per batch.

    Raises TechniqueError for layers without a last projection of each block (mixtures of experts).
    """
    import torch

    points: list[tuple[tuple[str, int], Module]] = [
        (("heads", row), last) for row, last in enumerate(last_projections(model, "heads"))
    ]
    points += [(("neurons", row), last) for row, last in enumerate(last_projections(model, "neurons"))]
    for layer in decoder_layers(model):
        points += [(("hidden", 0), part_of(layer, name)) for name in NORMS if hasattr(layer, name)]
    sizes = {"hidden": shape.hidden, "heads": shape.heads, "neurons": shape.intermediate}

    def reduce(point: tuple[str, int], before: "Tensor", after: "Tensor", mask: "Tensor") -> "Tensor":
        return energy(after if point[0] == "hidden" else before, mask, sizes[point[0]])

    passes = track(batches(ids, batch_size, pad_id), "activations", -(-len(ids) // batch_size))
    sums = collect(model, passes, points, reduce)
    heads, neurons = (torch.stack([sums[kind, row] for row in range(shape.layers)]) for kind in ("heads", "neurons"))
    return Scores(sums["hidden", 0], heads, neurons)


def measure_moments(
    model: "PreTrainedModel", axis: BlockAxis, units: int, ids: list[list[int]], batch_size: int, pad_id: int
) -> list[Moments]:
    """Return the moments of every layer's heads or neurons on conversations, on the CPU.

    units: heads or neurons in a layer.
    """
    import torch

    def reduce(_: int, before: "Tensor", __: "Tensor", mask: "Tensor") -> "Tensor":
        first = channel_sums(before, mask).view(units, -1, 1)
        return torch.cat([first, second_moments(before, mask, units)], dim=2)  # (units, width, 1 + width)

    passes = track(batches(ids, batch_size, pad_id), "activations", -(-len(ids) // batch_size))
    sums, tokens = collect(model, passes, enumerate(last_projections(model, axis)), reduce), sum(map(len, ids))
    return [Moments(sums[layer][..., 0], sums[layer][..., 1:], tokens) for layer in sorted(sums)]


def measure_means(
    model: "PreTrainedModel", axes: Sequence[BlockAxis], ids: list[list[int]], batch_size: int, pad_id: int
) -> "dict[BlockAxis, list[Tensor]]":
    """Return the mean of what enters the last projections on conversations, in one pass.

    axes: kinds of blocks.
    Returns (columns,), float64, per layer, on the CPU, by axis.
    """
    passes = track(batches(ids, batch_size, pad_id), "means", -(-len(ids) // batch_size))
    points = [((axis, row), last) for axis in axes for row, last in enumerate(last_projections(model, axis))]
    sums = collect(model, passes, points, lambda _, before, __, mask: channel_sums(before, mask))
    tokens = sum(map(len, ids))
    return {axis: [sums[point] / tokens for point in sorted(sums) if point[0] == axis] for axis in axes}


def measure_gates(
    model: "PreTrainedModel", axis: BlockAxis, units: int, ids: list[list[int]], batch_size: int, pad_id: int
) -> "list[Tensor]":
    """Return the `gate_gradients` of every layer's heads or neurons.

    Returns (units,), float64, per layer, on the CPU.
    """
    hooks = [gated_input(last) for last in last_projections(model, axis)]
    return gate_gradients(model, units, hooks, ids, batch_size, pad_id)


def gated_input(module: "Module") -> Hook:
    """Return a function that attaches a gate to what enters a module."""

    def attach(gate: Gate) -> Any:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (gate(args[0]), *args[1:]), kwargs
            return args, kwargs | {STATES: gate(kwargs[STATES])}

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    return attach


def gated_output(module: "Module") -> Hook:
    """Return a function that attaches a gate to what a module gives."""
    return lambda gate: module.register_forward_hook(lambda _, __, output: gate(output))


def gate_gradients(
    model: "PreTrainedModel", units: int, hooks: Sequence[Hook], ids: list[list[int]], batch_size: int, pad_id: int
) -> "list[Tensor]":
    """Return the squared gradient of the loss by a gate of each unit, summed over conversations.

    A gate is a factor of 1 on what a unit gives: the gradient by it is the change of the loss, to first order, if the unit goes
    (Molchanov et al. 2019, arXiv 1906.10771, section 3.1).  The loss is the negative log-likelihood of a conversation's tokens.

    hooks: attach a gate to a place of the model each, where values are (batch, length, units * width), and return the handle.
    Returns (units,), float64, per place, on the CPU.
    """
    import torch

    check_head(model)
    sums = [torch.zeros(units, dtype=torch.float64) for _ in hooks]
    gates: list[Tensor] = []

    def gate_at(place: int) -> Gate:
        def gate(values: "Tensor") -> "Tensor":
            parts = values.view(*values.shape[:-1], units, -1) * gates[place][:, None, :, None]
            return parts.flatten(-2)

        return gate

    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with ExitStack() as stack:
        for parameter in learning:
            parameter.requires_grad_(False)
            stack.callback(parameter.requires_grad_, True)
        for place, attach in enumerate(hooks):
            stack.callback(attach(gate_at(place)).remove)
        for batch in track(batches(ids, batch_size, pad_id), "gradients", -(-len(ids) // batch_size)):
            rows = len(batch["input_ids"])
            gates[:] = [
                torch.ones(rows, units, device=model.device, dtype=model.dtype, requires_grad=True) for _ in hooks
            ]
            loss = text_loss(model, batch)
            for place, gradient in enumerate(torch.autograd.grad(loss, gates)):
                sums[place] += gradient.double().square().sum(0).cpu()
    return sums
