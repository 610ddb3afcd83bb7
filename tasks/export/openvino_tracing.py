"""A model as an OpenVINO graph that keeps its cache, by transformers' own exporter."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tasks.export.tracing import quiet, sample_inputs, untraceable
from tasks.shared.engines.graph_names import LOGITS, PAST, PRESENT
from tasks.shared.engines.openvino_graph import import_openvino
from tasks.shared.errors import TechniqueError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GIVEN = ("input_ids", "attention_mask", "position_ids")
TRACEABLE_EXPERTS = "batched_mm"
"""How transformers computes experts while it is traced; OpenVINO has no operation for its usual grouped products."""


def trace(model: "PreTrainedModel") -> Any:
    """Return a model's graph in float32, with keys and values as states.

    Inputs and outputs are those that Hugging Face's exporter for OpenVINO writes and OpenVINO's own servers read: input_ids,
    attention_mask, position_ids, beam_idx, logits.
    Every layer caches all tokens; layers with a sliding window mask what is out of it.
    Raises TechniqueError for a model that the exporter cannot trace, or whose cache holds anything but keys and values.
    """
    openvino = import_openvino()
    from transformers.exporters.exporter_dynamo import DynamoConfig, DynamoExporter

    samples, shapes = sample_inputs(model)
    for given in (samples, shapes):
        del given["logits_to_keep"]
    try:
        with quiet(), traceable_experts(model):
            program = DynamoExporter().export(model, samples, DynamoConfig(dynamic_shapes=shapes))
            graph = openvino.convert_model(program)
    except Exception as error:  # torch.export and OpenVINO's front end raise anything
        raise untraceable(model, error, "export/openvino") from error
    make_stateful(graph, rename(graph, samples["past_key_values"]))
    number_nodes(graph)
    return graph


@contextmanager
def traceable_experts(model: Any) -> Iterator[None]:
    """Compute a mixture's experts by operations that OpenVINO has, within the context."""
    if not model._can_set_experts_implementation():
        yield
        return
    before = model.config._experts_implementation
    model.set_experts_implementation(TRACEABLE_EXPERTS)
    try:
        yield
    finally:
        model.set_experts_implementation(before)


def rename(graph: Any, cache: Any) -> list[str]:
    """Name inputs and outputs, and fix the number of heads and their size.

    cache: the sample's.
    Returns the names of the cache's tensors, such as 0.key.  Raises TechniqueError for a cache of anything but keys and values.
    """
    places = {
        id(tensor): (f"{number}.{kind}", tensor.shape)
        for number, layer in enumerate(cache.layers)
        for kind, tensor in (("key", layer.keys), ("value", layer.values))
    }
    known = [places[id(tensor)] for tensor in leaves(cache) if id(tensor) in places]
    past = [given for given in graph.inputs if not given.names.intersection(GIVEN)]
    made = [joined(given) for given in past]
    if not known or not (len(known) == len(places) == len(past) == len(graph.outputs) - 1) or None in made:
        raise TechniqueError("cache", "other states", "keys and values of every layer", "export/gguf")
    partial_shape = import_openvino().PartialShape
    for given in graph.inputs:
        if names := given.names.intersection(GIVEN):
            set_name(given, names.pop())
    for (name, shape), given, output in zip(known, past, made, strict=True):
        set_name(given, PAST + name)
        set_name(output, PRESENT + name)
        given.get_node().set_partial_shape(partial_shape([-1, shape[1], -1, shape[3]]))
    set_name(graph.outputs[0], LOGITS)
    graph.validate_nodes_and_infer_types()
    return [name for name, _ in known]


def leaves(cache: Any) -> list[Any]:
    """Tensors of a cache in the order in which torch.export lists them."""
    from torch.utils._pytree import tree_leaves

    return list(tree_leaves(cache))


def joined(past: Any) -> Any:
    """Return the output that holds past and new keys (or values); None if there is none."""
    for target in past.get_target_inputs():
        node = target.get_node()
        ends = {reader.get_node().get_type_name() for reader in node.output(0).get_target_inputs()}
        if node.get_type_name() == "Concat" and target.get_index() == 0 and "Result" in ends:
            return node.output(0)
    return None


def set_name(value: Any, name: str) -> None:
    """Set the one name of an input or output."""
    value.get_tensor().set_names({name})


def make_stateful(graph: Any, names: Sequence[str]) -> None:
    """Turn the cache's inputs and outputs into states, which start empty.

    The input `beam_idx` reorders their sequences.

    names: of the cache's tensors.
    """
    import numpy as np

    opset = import_openvino().opset15
    beam = opset.parameter([-1], np.int32, name="beam_idx")
    set_name(beam.output(0), "beam_idx")
    graph.add_parameters([beam])
    axis = np.array(0, np.int64)
    for name in names:
        past = graph.input(PAST + name)
        readers = past.get_target_inputs()
        ordered = opset.gather(past, beam, axis)
        for reader in readers:
            reader.replace_source_output(ordered.output(0))
    graph.validate_nodes_and_infer_types()
    import_module("openvino._offline_transformations").apply_make_stateful_transformation(
        graph, {PAST + name: PRESENT + name for name in names}
    )
    shape = opset.shape_of(graph.input("input_ids"), output_type="i64")
    batch = opset.gather(shape, np.array([0], np.int64), axis)
    for node in graph.get_ops():
        if node.get_type_name() == "ReadValue":
            sizes = [size.get_length() if size.is_static else 0 for size in node.get_output_partial_shape(0)]
            rest = opset.constant(np.array(sizes[1:], np.int64))
            empty = opset.broadcast(opset.constant(np.float32(0)), opset.concat([batch, rest], 0))
            node.set_arguments([empty])
    graph.validate_nodes_and_infer_types()


def number_nodes(graph: Any) -> None:
    """Name nodes by their place in the graph.

    Names that the front end gives depend on what was converted before.
    """
    for number, node in enumerate(graph.get_ordered_ops()):
        node.set_friendly_name(f"{node.get_type_name()}_{number}")
