"""Engines for the models that a step queries: the check, and the packages they need."""

from collections.abc import Iterator, Mapping

from flows.planning.steps import Source, Step
from flows.planning.weights import weight_format
from tasks.shared.engines.engine import FORM_PACKAGES, WeightForm, find_weights
from tasks.shared.engines.registry import ENGINES, AsksModels, engines_for, refusal
from tasks.shared.errors import ConfigError
from tasks.shared.technique import WEIGHTS, Kind


def engine_problems(step: Step, steps: Mapping[str, Step], sources: Mapping[str, Source]) -> Iterator[ConfigError]:
    """Yield an error for each input model for which no engine offers what the technique needs."""
    if not isinstance(step.technique, AsksModels):
        return
    needs = step.technique.engine_needs()
    for port in needs.ports:
        for name in step.inputs.get(port, ()):
            form = _form(name, steps, sources, needs.engines == ("llama.cpp",))
            if form and not engines_for(form, needs):
                reasons = "; ".join(refusal(engine, form, needs) for engine in ENGINES.values())
                what = f", which needs {' and '.join(needs.capabilities)}" if needs.capabilities else ""
                yield ConfigError(
                    f"steps.{step.name}.inputs.{port}",
                    f"{name}, whose weights are {form}: no engine runs them for this step{what} ({reasons})",
                    "a model in a form that an engine of this step reads (docs/engines.md)",
                    "leave this model out of the step, or let it use another engine",
                )


def engine_packages(step: Step, steps: Mapping[str, Step], sources: Mapping[str, Source]) -> tuple[str, ...]:
    """Return the optional packages that compute with a step's models, sorted."""
    if not isinstance(step.technique, AsksModels):
        return ()
    needs = step.technique.engine_needs()
    names = [name for port in needs.ports for name in step.inputs.get(port, ())]
    forms = {_form(name, steps, sources, needs.engines == ("llama.cpp",)) for name in names}
    return tuple(sorted({package for form in forms if form for package in FORM_PACKAGES.get(form, ())}))


def _form(name: str, steps: Mapping[str, Step], sources: Mapping[str, Source], llama: bool) -> WeightForm | None:
    """Form of a model's weights; None if it is not known before the run.

    llama: only llama.cpp will read them, so that a folder with a GGUF file beside other weights counts as that file.
    """
    if name in steps:
        if steps[name].kind is Kind.ENGINE:
            return steps[name].technique.spec.files
        if steps[name].kind not in WEIGHTS:
            return None
        return _folder_form(name, steps, sources)
    if name not in sources:
        return None
    if llama and not find_weights(sources[name].path, llama=True).fault:
        return "gguf"
    if (found := find_weights(sources[name].path)).fault:
        return None
    if found.engine == "llama.cpp":
        return "gguf"
    return _folder_form(name, steps, sources)


def _folder_form(name: str, steps: Mapping[str, Step], sources: Mapping[str, Source]) -> WeightForm:
    """Return the form of a model's folder; sparse and factored weights are plain tensors."""
    form = weight_format(name, steps, sources)
    return form if form in ("packed", "bitsandbytes") else "dense"
