"""Wiring of inputs that a recipe leaves out, where only one wiring is possible.

The rules depend on ports and kinds only, not on techniques or stages (docs/decisions/0016-ports-wired-by-the-plan.md).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.planning.steps import Step
from tasks.shared.errors import ConfigError
from tasks.shared.technique import Kind, Port

Names = tuple[str, ...]


@dataclass(frozen=True)
class Node:
    """A step as the recipe writes it, even if its settings are wrong.

    ports, kind: of its technique; empty and None if there is no such technique.
    inputs: names by port as the recipe has them; an empty tuple means none.
    """

    ports: Mapping[str, Port]
    kind: Kind | None
    inputs: Mapping[str, Names]


@dataclass(frozen=True)
class Wiring:
    """The result of `wire`, by step.

    inputs: names by port, without empty ports, in the order of the technique's ports.
    wired: ports among them that the recipe leaves out.
    problems: only of steps that have some.
    """

    inputs: Mapping[str, Mapping[str, Names]]
    wired: Mapping[str, Names]
    problems: Mapping[str, Sequence[ConfigError]]


def wire(nodes: Mapping[str, Node], sources: Sequence[str]) -> Wiring:
    """Wire every missing input that can be wired in one way only.

    nodes: all steps, in the recipe's order.
    sources: names of the models that the recipe starts from, such as models.teacher.
    """
    graph = _Graph(nodes, sources)
    graph.settle()
    problems = {step: list(graph.problems(step)) for step in nodes}
    return Wiring(
        inputs={step: _in_port_order(node, graph.inputs[step]) for step, node in nodes.items()},
        wired={
            step: tuple(port for port in node.ports if graph.inputs[step].get(port) and port not in node.inputs)
            for step, node in nodes.items()
        },
        problems={step: found for step, found in problems.items() if found},
    )


def recipe_inputs(step: Step) -> dict[str, Any]:
    """Return a step's inputs in full.

    Empty ports that a plan would otherwise wire are null or [].
    """
    written: dict[str, Any] = {}
    for name, port in step.technique.spec.ports.items():
        names = step.inputs.get(name, ())
        if names or scope_of(port):
            written[name] = list(names) if port.many else names[0] if names else None
    return written


def scope_of(port: Port) -> str:
    """Return where the plan looks for a missing input (`Port.wire`); empty if nowhere."""
    return port.wire or ("" if port.optional or port.many else "recipe")


def _in_port_order(node: Node, inputs: Mapping[str, Names]) -> dict[str, Names]:
    return {port: inputs[port] for port in dict.fromkeys([*node.ports, *inputs]) if inputs.get(port)}


class _Graph:
    """The recipe's edges, and those that the rules add."""

    def __init__(self, nodes: Mapping[str, Node], sources: Sequence[str]) -> None:
        self.nodes = nodes
        self.kinds: dict[str, Kind | None] = {name: Kind.MODEL for name in sources}
        self.kinds |= {name: node.kind for name, node in nodes.items()}
        self.inputs: dict[str, dict[str, Names]] = {name: dict(node.inputs) for name, node in nodes.items()}
        self._origins: dict[str, set[str]] = {}

    def settle(self) -> None:
        """Add edges in groups, each repeated until nothing changes.

        Required single ports come first, then optional ones, lists, and ports that look at readers or inputs.
        A new edge can rule out a candidate of another port that would now close a cycle.
        """
        for group in (("recipe", False, False), ("recipe", False, True), ("recipe", True), ("reader",), ("inputs",)):
            while any([self._take(step, port) for step, port in self._open(*group)]):
                pass

    def _open(self, scope: str, many: bool | None = None, optional: bool | None = None) -> list[tuple[str, str]]:
        """Steps and ports that look in this scope and have no input yet."""
        return [
            (step, name)
            for step, node in self.nodes.items()
            for name, port in node.ports.items()
            if name not in self.inputs[step]
            and scope_of(port) == scope
            and many in (None, port.many)
            and optional in (None, port.optional)
        ]

    def _take(self, step: str, name: str) -> bool:
        """Wire a port if there is one way to do so; return True if it was wired."""
        port = self.nodes[step].ports[name]
        if scope_of(port) == "reader":
            values = set(self.of_readers(step, name).values())
            found: Sequence[str] = values.pop() if len(values) == 1 else ()
        else:
            found = self.candidates(step, name)
            found = found if port.many or len(found) == 1 else ()
        if found:
            self.inputs[step][name] = tuple(found)
            self._origins.clear()
        return bool(found)

    def candidates(self, step: str, port: str) -> list[str]:
        """Artifacts that a port may take, none of them made from the step itself.

        Single port: artifacts of the first of the port's kinds that exists, unless another port of the step already takes them.
        List: steps only; source models must be named.
        """
        wanted = self.nodes[step].ports[port]
        known = self.origins(step) if scope_of(wanted) == "inputs" else self.kinds.keys()
        found = [name for name in self.fitting(step, port) if name in known and step not in self.origins(name)]
        if wanted.many:
            return [name for name in found if name in self.nodes]
        taken = {read for other in self.nodes[step].ports for read in self.inputs[step].get(other, ())}
        free = [name for name in found if name not in taken] if scope_of(wanted) == "recipe" else found
        first = next((kind for kind in wanted.kinds if any(self.kinds[name] is kind for name in free)), None)
        return [name for name in free if self.kinds[name] is first]

    def fitting(self, step: str, port: str) -> list[str]:
        """All other artifacts of a kind that the port accepts, in the recipe's order."""
        kinds = self.nodes[step].ports[port].kinds
        return [name for name, kind in self.kinds.items() if kind in kinds and name != step]

    def of_readers(self, step: str, port: str) -> dict[str, Names]:
        """Names at the port of this name, by step that has such a port and reads this step."""
        return {
            name: self.inputs[name].get(port, ())
            for name, node in self.nodes.items()
            if port in node.ports and step in self._reads(name)
        }

    def origins(self, name: str) -> set[str]:
        """All artifacts that this one is made from, directly or indirectly."""
        if name not in self._origins:
            found: set[str] = set()
            waiting = [name]
            while waiting:
                new = self._reads(waiting.pop()) - found
                found |= new
                waiting += new
            self._origins[name] = found
        return self._origins[name]

    def _reads(self, name: str) -> set[str]:
        return {read for names in self.inputs.get(name, {}).values() for read in names}

    def problems(self, step: str) -> Iterator[ConfigError]:
        """Yield an error for each port that the recipe has to name."""
        node = self.nodes[step]
        for name, port in node.ports.items():
            if self.inputs[step].get(name) or (name in node.inputs and port.optional):
                continue
            scope = scope_of(port)
            values = self.of_readers(step, name) if scope == "reader" else {}
            if len(set(values.values())) > 1:
                yield _disagreement(step, name, values)
            elif scope in ("recipe", "inputs") and len(found := self.candidates(step, name)) > 1:
                yield _choice(step, name, port, found)
            elif not (port.optional or self._missing_elsewhere(step, name, values)):
                yield self._missing(step, name, port)

    def _missing_elsewhere(self, step: str, name: str, readers: Mapping[str, Names]) -> bool:
        """Return True if another error explains the empty port.

        The error concerns a reader that needs the same input, or an unknown technique.
        """
        if any(not (self.nodes[reader].ports[name].optional or names) for reader, names in readers.items()):
            return True
        return not self.fitting(step, name) and any(node.kind is None for node in self.nodes.values())

    def _missing(self, step: str, name: str, port: Port) -> ConfigError:
        fitting = self.fitting(step, name)
        after = [other for other in fitting if step in self.origins(other)]
        free = [other for other in fitting if other not in after]
        kinds = " or ".join(port.kinds)
        if free:
            return ConfigError(
                _where(step, name), "missing", f"{kinds}: {', '.join(free)}", _type(step, name, port, free[-1])
            )
        if after:
            got = f"missing; {', '.join(after)} would close a cycle: made from {step}"
            return ConfigError(
                _where(step, name), got, f"{kinds} that {step} does not lead to", "add a step that makes one"
            )
        got = f"missing, and the recipe has no {kinds}"
        return ConfigError(
            _where(step, name), got, kinds, "add a step that makes one: +<stage>@steps.<name>=<technique>"
        )


def _choice(step: str, name: str, port: Port, found: Sequence[str]) -> ConfigError:
    got = f"missing, and {len(found)} fit: {', '.join(found)}"
    fix = _type(step, name, port, found[-1]) + (", or null for none" if port.optional else "")
    return ConfigError(_where(step, name), got, "one of them, by name", fix)


def _disagreement(step: str, name: str, values: Mapping[str, Names]) -> ConfigError:
    taken = "; ".join(f"{reader} takes {', '.join(names) or 'none'}" for reader, names in values.items())
    fix = f"name what {step} takes, or place one such step for each of them"
    return ConfigError(_where(step, name), f"missing, and its readers differ: {taken}", "the same in all of them", fix)


def _type(step: str, name: str, port: Port, example: str) -> str:
    """Text to type in the recipe or on the command line."""
    value = f"[{example}]" if port.many else example
    return f"{step}: {{inputs: {{{name}: {value}}}}} in the recipe, or '+{_where(step, name)}={value}'"


def _where(step: str, name: str) -> str:
    return f"steps.{step}.inputs.{name}"
