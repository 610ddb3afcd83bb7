"""Check of weight formats: a technique that needs dense weights gets no packed ones."""

from collections.abc import Iterator, Mapping

from flows.planning.steps import Source, Step
from tasks.shared.errors import ConfigError
from tasks.shared.model.weights import quantization, stored_form
from tasks.shared.store.lineage import MAIN_PORT
from tasks.shared.technique import Weights

TAKEN: Mapping[str, frozenset[Weights]] = {
    "dense": frozenset({"dense", "same"}),
    "packed": frozenset({"dense", "same", "packed"}),
}
"""Weight formats that a technique takes, by its `Spec.accepts`."""
WANTED = {"dense": "dense weights", "packed": "dense weights, or integers with scales of compressed-tensors"}


def weight_problems(step: Step, steps: Mapping[str, Step], sources: Mapping[str, Source]) -> Iterator[ConfigError]:
    """Yield an error for each input model in a weight format that the technique does not accept.

    The fix names the dense model from which the quantized one was made.
    """
    if step.technique.spec.accepts == "any":
        return
    for name in step.inputs.get(MAIN_PORT, ()):
        chain = list(_chain(name, steps))
        form = weight_format(name, steps, sources)
        if form not in TAKEN[step.technique.spec.accepts]:
            method = _method(chain[-1], sources)
            dense = steps[chain[-1]].inputs.get(MAIN_PORT, ()) if chain[-1] in steps else ()
            where = f"steps.{step.name}.inputs.{MAIN_PORT}"
            yield ConfigError(
                where,
                f"{name}, whose weights are quantized already ({method})"
                if method
                else f"{name}, whose weights are {form}",
                WANTED[step.technique.spec.accepts],
                f"{where}={dense[0]}" if dense else "use the model before its quantization",
            )


def weight_format(name: str, steps: Mapping[str, Step], sources: Mapping[str, Source]) -> Weights:
    """Return the weight format of a model: that of its step, or of the one before that set it."""
    return _format(list(_chain(name, steps))[-1], steps, sources)


def _chain(name: str, steps: Mapping[str, Step]) -> Iterator[str]:
    """Yield the names of a model and its ancestors, up to the one that set its weight format."""
    seen: set[str] = set()
    while name not in seen:
        seen.add(name)
        yield name
        step = steps.get(name)
        if step is None or step.technique.spec.gives != "same" or not step.inputs.get(MAIN_PORT):
            return
        name = step.inputs[MAIN_PORT][0]


def _format(name: str, steps: Mapping[str, Step], sources: Mapping[str, Source]) -> Weights:
    """Return the weight format of a model; GGUF sources are dense: transformers unpacks them."""
    if name in steps:
        return steps[name].technique.spec.gives or "dense"
    path = sources[name].path if name in sources else None
    return stored_form(path) if path is not None and path.is_dir() else "dense"


def _method(name: str, sources: Mapping[str, Source]) -> str:
    """Method that quantized a source folder's weights; empty for dense weights and steps."""
    path = sources[name].path if name in sources else None
    return quantization(path) if path is not None and path.is_dir() else ""
