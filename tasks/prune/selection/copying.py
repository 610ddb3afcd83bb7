"""A student's configuration and weights, filled from its teacher's."""

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.prune.selection.picks import Picks
from tasks.prune.selection.shape import Shape, shape_of
from tasks.shared.errors import TechniqueError
from tasks.shared.model.layout import find_layout, kept_layers_config

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

NORM_NAMES = (
    "norm",
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
AXES: Mapping[str, tuple[str, ...]] = {
    "embed_tokens.weight": ("", "hidden"),
    "lm_head.weight": ("", "hidden"),
    **{f"{name}.weight": ("hidden",) for name in NORM_NAMES},
    **{"q_proj.weight": ("heads", "hidden"), "q_proj.bias": ("heads",)},
    **{f"{name}_proj.weight": ("kv_heads", "hidden") for name in "kv"},
    **{f"{name}_proj.bias": ("kv_heads",) for name in "kv"},
    **{"o_proj.weight": ("hidden", "heads"), "o_proj.bias": ("hidden",)},
    **{"q_norm.weight": ("heads",), "k_norm.weight": ("kv_heads",)},
    **{f"{name}_proj.weight": ("neurons", "hidden") for name in ("gate", "up")},
    **{f"{name}_proj.bias": ("neurons",) for name in ("gate", "up")},
    **{"down_proj.weight": ("hidden", "neurons"), "down_proj.bias": ("hidden",), "gate_up_proj.weight": ("gates", "hidden")},
    "qkv_proj.weight": ("", "hidden"),
    **{"experts.gate_up_proj": ("", "", "hidden"), "experts.down_proj": ("", "hidden", "")},
    **{"gate.weight": ("", "hidden"), "shared_expert_gate.weight": ("", "hidden")},
    **{"dense_h_to_4h.weight": ("neurons", "hidden"), "dense_h_to_4h.bias": ("neurons",)},
    **{"dense_4h_to_h.weight": ("hidden", "neurons"), "dense_4h_to_h.bias": ("hidden",)},
}  # fmt: skip
"""Kinds of a weight's axes, by the end of its name; an axis without a kind is kept whole, and so is any other weight."""
HEAD_NORMS = ("q_norm.weight", "k_norm.weight")
"""Norms over all heads at once (OLMo 2), or over each head by itself (Qwen3, Gemma 3), which is kept whole."""
SHOWN = 5


def ending_of(name: str) -> str:
    """Return the end of a weight's name that tells its axes."""
    return ".".join(name.split(".")[-2:])


def axes_of(name: str) -> tuple[str, ...]:
    """Return the kinds of a weight's axes, by its name; empty if it is kept whole."""
    return AXES.get(ending_of(name), ())


def student_config(teacher: Any, shape: Shape, origins: Sequence[int]) -> Any:
    """Return the teacher's configuration with the student's sizes.

    shape: the student's sizes.
    origins: for each layer of the student, the teacher layer whose type it takes (sliding or full attention).

    The head size stays the teacher's for any width, since rotary embeddings rotate its channels in pairs.
    Raises TechniqueError for sizes that the configuration's class refuses on loading.
    """
    from huggingface_hub.errors import StrictDataclassError

    config, changes = copy.deepcopy(teacher), kept_layers_config(teacher.to_dict(), origins)
    for name, value in (changes | changed_sizes(shape_of(teacher), shape)).items():
        setattr(config, name, value)
    try:
        config.validate()
    except StrictDataclassError as error:
        raise TechniqueError(
            type(teacher).__name__,
            f"a model of these sizes would not load: {str(error).splitlines()[-1].strip()}",
            "sizes that its configuration takes",
            "choose other sizes",
        ) from error
    return config


def changed_sizes(before: Shape, after: Shape) -> dict[str, int]:
    """Return the settings of a configuration that change with the widths of a model."""
    sizes = {
        "hidden_size": (before.hidden, after.hidden), "intermediate_size": (before.intermediate, after.intermediate),
        "num_attention_heads": (before.heads, after.heads), "num_key_value_heads": (before.kv_heads, after.kv_heads),
    }  # fmt: skip
    changed = {name: new for name, (old, new) in sizes.items() if new != old}
    moved = {"hidden_size", "num_attention_heads"} & changed.keys()  # what a head size left out would be computed from
    return changed | ({"head_dim": after.head_dim} if moved else {})


def take(weight: "Tensor", name: str, picks: Picks) -> "Tensor":
    """Select the student's part of one of the teacher's weights.

    weight: (out, in) or (channels,).
    name: of the weight, which determines the axes to cut.
    """
    along = picks.along()
    if ending_of(name) in HEAD_NORMS and weight.shape[0] == picks.teacher.head_dim:
        return weight
    for dimension, axis in enumerate(axes_of(name)):
        if axis in along:
            weight = weight.index_select(dimension, along[axis].to(weight.device))
    return weight


def fill(student: "PreTrainedModel", teacher: "PreTrainedModel", layers: Sequence[int], picks: Sequence[Picks]) -> int:
    """Copy the teacher's weights into the student in place; return the number of weights copied.

    layers: the teacher's layer for each of the student's layers.
    picks: selected channels, heads and neurons, by teacher layer.
    Raises TechniqueError for weights whose shape does not fit afterwards.
    """
    import torch

    given, wanted, layout = teacher.state_dict(), student.state_dict(), find_layout(teacher)
    copied, odd = set(), []
    for name, place in wanted.items():
        match = layout.layer_weight.fullmatch(name)
        if match and int(match[1]) >= len(layers):
            continue
        origin = layers[int(match[1])] if match else 0
        source = f"{layout.layers}.{origin}.{match[2]}" if match else name
        weight = take(given[source], name, picks[origin])
        if weight.shape != place.shape:
            odd.append(f"{name} ({tuple(weight.shape)} for {tuple(place.shape)})")
            continue
        with torch.no_grad():
            place.copy_(weight)
        copied.add(name)
    if odd:
        raise TechniqueError(
            type(teacher).__name__,
            f"{len(odd)} weights cannot be cut in this way: {', '.join(odd[:SHOWN])}",
            "a dense decoder of the Llama, Mistral, Qwen or Gemma families",
            "keep the teacher's width and select layers only",
        )
    return sum(parameter.numel() for name, parameter in student.named_parameters() if name in copied)


def build_student(
    teacher: "PreTrainedModel", student: Shape, picks: Sequence[Picks], layers: Sequence[int], origins: Sequence[int]
) -> "tuple[PreTrainedModel, int]":
    """Return a model with the student's sizes and the teacher's weights.

    Also returns the number of weights copied.

    picks: selected channels, heads and neurons, by teacher layer.
    layers: the teacher's layer for each of the student's first layers; later ones start from random numbers.
    origins: for every layer of the student, the teacher layer whose type it takes.
    Raises TechniqueError for sizes that the configuration refuses, or weights that cannot be cut.
    """
    import torch
    from transformers import AutoModelForCausalLM

    small = AutoModelForCausalLM.from_config(student_config(teacher.config, student, origins), dtype=torch.float32)
    copied = fill(small, teacher, layers, picks)
    small.generation_config = teacher.generation_config
    return small, copied
