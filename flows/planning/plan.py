"""Composed recipe to ordered, checked plan.

Pure: no torch, no Prefect, nothing runs or downloads.  All mistakes that can be found before a run are reported together.
"""

import difflib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from pydantic import ValidationError

from flows.planning.engines import engine_packages, engine_problems
from flows.planning.extras import extra_problems
from flows.planning.families import family_problems
from flows.planning.steps import Plan, Source, Step
from flows.planning.weights import weight_problems
from flows.planning.widths import width_problems
from flows.planning.wiring import Node, Wiring, wire
from tasks.shared.errors import ConfigError, ErrorList, StillroomError
from tasks.shared.model.sources import ModelSource
from tasks.shared.store.keys import module_file
from tasks.shared.technique import ChecksPlan, Port, ReadsFiles, Spec, Upstream

STAGES = ("curate", "traces", "logits", "distill", "prune", "quantize", "export", "evaluate", "report")
RESERVED = frozenset({"_target_", "inputs", "seed", "versions"})
"""Keys of a step's node that are not settings of its technique."""
NAME_PATTERN = r"[a-z][a-z0-9_]{0,40}"


def build_plan(config: Mapping[str, Any]) -> Plan:
    """Check a composed recipe, wire the inputs that it leaves out, and order its steps.

    config: plain resolved dict with `name`, `seed`, `models` and `steps`.
    Raises ErrorList with every problem: unknown inputs, cycles, wrong kinds, settings without a technique, foreign
    targets, wrong values, missing model files.
    """
    problems: list[StillroomError] = []
    name = str(config.get("name", ""))
    nodes = config.get("steps") or {}
    if not nodes:
        problems.append(
            ConfigError("steps", "the recipe has no steps", "at least one", "see conf/recipe/ for examples")
        )
    sources = dict(_sources(config.get("models") or {}, problems))
    wiring = wire(
        {key: _node(node) for key, node in nodes.items()}, [f"models.{key}" for key in config.get("models") or {}]
    )
    steps = {key: step for key, node in nodes.items() if (step := _step(key, node, wiring, problems)) is not None}
    for key in [name, *nodes]:
        if not _valid_name(key):
            problems.append(
                ConfigError(
                    "name",
                    repr(key),
                    "lower-case letters, digits and underscores, at most 41, a letter first",
                    "rename it",
                )
            )
    named = {*nodes, *(f"models.{key}" for key in config.get("models") or {})}
    upstream = {key: Upstream(step.technique, step.inputs) for key, step in steps.items()}
    for step in steps.values():
        problems.extend(_input_problems(step, steps, sources, named))
        problems.extend(weight_problems(step, steps, sources))
        problems.extend(engine_problems(step, steps, sources))
        problems.extend(extra_problems(step))
        problems.extend(family_problems(step, steps, sources))
        problems.extend(width_problems(step, steps, sources))
        problems.extend(wiring.problems.get(step.name, ()))
        whole = wiring.problems.keys().isdisjoint({step.name, *step.needs})
        if isinstance(step.technique, ChecksPlan) and whole:
            problems.extend(step.technique.plan_problems(f"steps.{step.name}", step.inputs, upstream))
    order = _order(steps, problems)
    if problems:
        raise ErrorList(problems)
    found = (replace(steps[key], engine_packages=engine_packages(steps[key], steps, sources)) for key in order)
    return Plan(config, sources, tuple(found))


def _valid_name(name: str) -> bool:
    import re

    return re.fullmatch(NAME_PATTERN, name) is not None


def _sources(models: Mapping[str, Any], problems: list[StillroomError]) -> Iterator[tuple[str, Source]]:
    for name, node in models.items():
        where = f"models.{name}"
        try:
            settings = ModelSource(**node)
            yield where, Source(where, settings, settings.locate(where))
        except ValidationError as error:
            problems.extend(_setting_problems(where, error, ModelSource))
        except TypeError as error:
            problems.append(ConfigError(where, str(error), "a mapping with path, hub or package"))
        except StillroomError as error:
            problems.append(error)


def _node(node: Any) -> Node:
    """A step as the recipe writes it; `_step` reports its mistakes."""
    if not isinstance(node, Mapping):
        return Node({}, None, {})
    written = node.get("inputs")
    inputs = {str(port): _names(value) for port, value in written.items()} if isinstance(written, Mapping) else {}
    try:
        cls = find_technique("", str(node.get("_target_")))
    except StillroomError:
        return Node({}, None, inputs)
    return Node(cls.spec.ports, cls.spec.produces, inputs)


def _names(value: Any) -> tuple[str, ...]:
    """Names at a port; empty for null."""
    if value is None:
        return ()
    several = isinstance(value, Sequence) and not isinstance(value, str)
    return tuple(map(str, value)) if several else (str(value),)


def _step(name: str, node: Any, wiring: Wiring, problems: list[StillroomError]) -> Step | None:
    where = f"steps.{name}"
    if not isinstance(node, Mapping):
        problems.append(
            ConfigError(where, repr(node), "a technique with its settings", f"place one: +<stage>@{where}=<technique>")
        )
        return None
    settings = {key: value for key, value in node.items() if key not in RESERVED}
    target = node.get("_target_")
    if not target:
        problems.append(
            ConfigError(
                where,
                f"settings ({', '.join(settings) or 'inputs'}) without a technique",
                "a technique at this name",
                f"+<stage>@{where}=<technique> places one; remove the step with ~{where}",
            )
        )
        return None
    try:
        cls = find_technique(where, str(target))
    except StillroomError as error:
        problems.append(error)
        return None
    try:
        technique = cls(**settings)
    except StillroomError as error:  # a technique knows its settings, not the step that gives them
        problems.append(error.within(where))
        return None
    except ValidationError as error:
        problems.extend(_setting_problems(where, error, cls))
        return None
    if isinstance(technique, ReadsFiles):
        problems.extend(
            ConfigError(where, f"{file}: no such file or folder", "an existing path", "correct the path")
            for file in technique.sources()
            if not file.exists()
        )
    if not isinstance(node.get("inputs") or {}, Mapping):
        problems.append(ConfigError(f"{where}.inputs", repr(node["inputs"]), "names by port, such as {model: tuned}"))
    seed = node.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
        problems.append(ConfigError(f"{where}.seed", repr(seed), "a whole number from 0", f"{where}.seed=1"))
        return None
    return Step(
        name, str(target).split(".")[1], str(target), technique, wiring.inputs[name], seed, wired=wiring.wired[name]
    )


def find_technique(where: str, target: str) -> type[Any]:
    """Return the class that `_target_` names.

    Imports tasks.<stage>.<technique>.<Class> only; raises ConfigError for any other target.
    """
    parts = target.split(".")
    if len(parts) != 4 or parts[0] != "tasks" or parts[1] not in STAGES or module_file(".".join(parts[:3])) is None:
        raise ConfigError(
            f"{where}._target_",
            target,
            "tasks.<stage>.<technique>.<Class> of this project",
            "recipes may not name code from elsewhere; add a technique (CONTRIBUTING.md)",
        )
    found = getattr(importlib.import_module(".".join(parts[:3])), parts[3], None)
    if found is None or not isinstance(getattr(found, "spec", None), Spec):
        raise ConfigError(f"{where}._target_", target, f"a technique in {'.'.join(parts[:3])}")
    return found


def _setting_problems(where: str, error: ValidationError, cls: type[Any]) -> Iterator[ConfigError]:
    """Yield a ConfigError for each wrong setting, with the nearest known name for a typo."""
    known = [field.name for field in fields(cls)]
    for detail in error.errors():
        place = ".".join([where, *(str(part) for part in detail["loc"])])
        if detail["type"] in {"unexpected_keyword_argument", "unexpected_keyword"}:
            wrong = str(detail["loc"][-1])
            near = difflib.get_close_matches(wrong, known, 1)
            yield ConfigError(
                place,
                f"{cls.__name__} has no setting {wrong!r}",
                ", ".join(sorted(known)),
                f"did you mean {where}.{near[0]}?" if near else f"remove it: ~{place}",
            )
        else:
            yield ConfigError(place, repr(detail.get("input")), detail["msg"])


def _input_problems(
    step: Step, steps: Mapping[str, Step], sources: Mapping[str, Source], named: set[str]
) -> Iterator[ConfigError]:
    ports = step.technique.spec.ports
    for port, names in step.inputs.items():
        where = f"steps.{step.name}.inputs.{port}"
        if port not in ports:
            near = difflib.get_close_matches(port, ports, 1)
            yield ConfigError(
                where,
                f"{step.target} has no input {port!r}",
                ", ".join(ports),
                f"did you mean {near[0]!r}?" if near else f"remove it: ~{where}",
            )
            continue
        if len(names) != 1 and not ports[port].many:
            yield ConfigError(where, f"{len(names)} names", "exactly one", f"{where}={names[0]}")
        if len(set(names)) != len(names):
            yield ConfigError(where, f"a name twice: {', '.join(names)}", "each name once")
        for name in names:
            yield from _edge_problems(where, name, ports[port], steps, sources, named)


def _edge_problems(
    where: str, name: str, port: Port, steps: Mapping[str, Step], sources: Mapping[str, Source], named: set[str]
) -> Iterator[ConfigError]:
    producer: Step | Source | None = steps.get(name) or sources.get(name)
    if producer is None:
        if name in named:  # a broken step or model, reported where it is broken
            return
        if name.startswith("models."):
            known = ", ".join(sources) or "a model under models:"
            yield ConfigError(where, f"no model {name!r}", known, f"+model@{name}=<option>")
            return
        near = difflib.get_close_matches(name, [*steps, *sources], 1)
        yield ConfigError(
            where,
            f"no step or model {name!r}",
            ", ".join([*sources, *steps]),
            f"did you mean {near[0]!r}?" if near else f"{where}=<step>",
        )
    elif producer.kind not in port.kinds:
        kinds = {other: step.kind for other, step in steps.items()} | {
            other: source.kind for other, source in sources.items()
        }
        fits = [other for other, kind in kinds.items() if kind in port.kinds]
        yield ConfigError(
            where,
            f"{name!r} is a {producer.kind}",
            " or ".join(port.kinds) + (f" (such as {fits[0]})" if fits else ""),
            f"{where}={fits[0]}" if fits else "",
        )


def _order(steps: Mapping[str, Step], problems: list[StillroomError]) -> list[str]:
    """Return step names with inputs first; among the ready ones, in the recipe's own order."""
    graph = {name: [need for need in step.needs if need in steps] for name, step in steps.items()}
    sorter = TopologicalSorter(graph)
    try:
        sorter.prepare()
    except CycleError as error:
        ring = " -> ".join(reversed(error.args[1]))
        problems.append(
            ConfigError("steps", f"a cycle: {ring}", "a graph without cycles", "change one of these inputs")
        )
        return []
    position = {name: index for index, name in enumerate(steps)}
    order: list[str] = []
    waiting: list[str] = []
    while sorter.is_active():
        waiting.extend(sorter.get_ready())
        waiting.sort(key=position.__getitem__)
        order.append(waiting.pop(0))
        sorter.done(order[-1])
    return order
