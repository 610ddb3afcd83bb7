"""Console output of a run: plan, steps, table of models, addresses of the results."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from flows.console.decidable import show_decidable
from flows.planning.caveats import caveat_lines
from flows.planning.chats import chat_lines
from flows.planning.config import Runtime
from flows.planning.estimate import Estimate, estimate_plan
from flows.planning.items import check_items
from flows.planning.session import Session
from flows.planning.status import Status, find_status
from flows.planning.steps import Plan, Step, technique_name
from tasks.shared.errors import ErrorList
from tasks.shared.technique import Kind
from tasks.shared.text.numbers import byte_size, duration

if TYPE_CHECKING:
    from flows.running.runner import Outcome, Run
    from flows.tracking import Tracker
    from tasks.shared.formats.verdict import Verdict
    from tasks.shared.store.artifacts import Place


WIDE = 110
"""Width of a terminal, columns, from which the plan's table includes the steps' inputs."""

FORECAST_DIGITS = 2


def show_plan(
    plan: Plan, runtime: Runtime, variant: bool = False, console: Console | None = None, graph: bool = False
) -> None:
    """Print a plan: costs, inputs that it filled in, graph, notes, and warnings last.

    graph: also print the graph as mermaid text.
    Raises ErrorList for margins on measures without a test item.
    """
    console = console or Console()
    estimates = estimate_plan(plan, runtime)
    session = Session(plan, runtime, variant)
    status = find_status(session)
    console.print(cost_table(plan, estimates, status, reads=console.width >= WIDE))
    reasons = {
        name: item.why
        for name, item in status.items()
        if not item.done and item.why != "new" and not item.why.startswith("after ")
    }
    if wired := dict(wiring(plan)):
        console.print(wiring_grid(wired))
    console.print(tree(plan))
    if graph:
        console.print("mermaid (paste it into Markdown):", style="bold")
        console.print(mermaid(plan), markup=False, highlight=False, soft_wrap=True)
    items = check_items(session, status, estimates)
    for name, why in reasons.items():
        console.print(f"[bold]{name}[/bold] runs again: {escape(why)}", highlight=False)
    for line in (*caveat_lines(plan), *chat_lines(plan), *items.notes):
        console.print(line, markup=False, highlight=False)
    show_decidable(console, items.decidable)
    for warning in items.warnings:
        console.print(f"[yellow]warning[/yellow] {escape(warning)}", highlight=False)
    if items.errors:
        raise ErrorList(items.errors)


def cost_table(plan: Plan, estimates: dict[str, Estimate], status: Mapping[str, Status], reads: bool) -> Table:
    """Table of every step with its technique and forecast; a finished step's time is "done".

    reads: include the steps' inputs, which need a wide terminal; the tree shows them as well.
    """
    caption = "forecast; * measured in an earlier run here"
    table = Table(title=f"plan of {plan.recipe}: {len(plan.steps)} steps", caption=caption)
    for name in ("step", "technique", *(["reads"] if reads else []), "time", "disk", "memory"):
        figure = name in {"time", "disk", "memory"}
        table.add_column(name, justify="right" if figure else "left", no_wrap=name != "reads")
    for step in plan.steps:
        item = estimates[step.name]
        table.add_row(
            step.name,
            technique_name(step),
            *([", ".join(step.needs)] if reads else []),
            "done"
            if status[step.name].done
            else f"{duration(item.seconds, FORECAST_DIGITS)}{'*' if item.measured else ''}",
            byte_size(item.disk_bytes, FORECAST_DIGITS),
            memory_text(item),
        )
    total = sum(item.seconds for name, item in estimates.items() if not status[name].done)
    table.add_section()
    table.add_row(
        *("all", "", *([""] if reads else [])),
        duration(total, FORECAST_DIGITS),
        byte_size(sum(item.disk_bytes for item in estimates.values()), FORECAST_DIGITS),
        byte_size(max(item.memory_bytes for item in estimates.values()), FORECAST_DIGITS),
    )
    return table


def wiring(plan: Plan) -> Iterator[tuple[str, str]]:
    """Yield each step with inputs that the plan filled in, and these inputs.

    For example "tuned" and "model=models.teacher, data=traces".
    """
    for step in plan.steps:
        taken = [f"{port}={_input_text(step, port)}" for port in step.wired]
        if taken:
            yield step.name, ", ".join(taken)


def wiring_grid(wired: Mapping[str, str]) -> Table:
    """Table of the inputs that the plan filled in, a step each, wrapped below their start."""
    grid = Table(
        title="inputs filled in by the plan", title_justify="left", show_header=False, box=None, padding=(0, 1, 0, 0)
    )
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    for name, taken in wired.items():
        grid.add_row(name, escape(taken))
    return grid


def _input_text(step: Step, port: str) -> str:
    names = ", ".join(step.inputs[port])
    return f"[{names}]" if step.technique.spec.ports[port].many else names


def tree(plan: Plan) -> Tree:
    """Graph as a tree: a step is below its last input; a plus sign precedes the others."""
    root = Tree(f"[bold]{plan.recipe}[/bold]")
    branches = {name: root.add(name) for name in plan.sources}
    for step in plan.steps:
        first = _parent(plan, step)
        others = [name for name in step.needs if name != first]
        label = f"[bold]{step.name}[/bold] {technique_name(step)}" + (
            f" [dim]+ {', '.join(others)}[/dim]" if others else ""
        )
        branches[step.name] = (branches[first] if first else root).add(label)
    return root


def _parent(plan: Plan, step: Step) -> str | None:
    """Return the input below which the tree shows a step: the one that is made last."""
    order = {name: index for index, name in enumerate([*plan.sources, *(item.name for item in plan.steps)])}
    return max(step.needs, key=order.__getitem__, default=None)


def mermaid(plan: Plan) -> str:
    """Graph as mermaid text."""
    lines = ["graph LR"]
    lines += [f"  {name.replace('.', '_')}[({name})]" for name in plan.sources]
    lines += [f'  {step.name}["{step.name}<br/>{technique_name(step)}"]' for step in plan.steps]
    lines += [f"  {name.replace('.', '_')} --> {step.name}" for step in plan.steps for name in step.needs]
    return "\n".join(lines)


def memory_text(item: Estimate) -> str:
    """Memory of the machine, plus memory of each GPU if the step computes on one."""
    gpu = f" + {byte_size(item.gpu_bytes, FORECAST_DIGITS)} GPU" if item.gpu_bytes else ""
    return byte_size(item.memory_bytes, FORECAST_DIGITS) + gpu


def step_table(outcomes: "list[Outcome]") -> Table:
    """Table of every step: made or found, time, memory and its first figures."""
    table = Table(title="steps")
    for name, justify in (
        ("step", "left"),
        ("status", "left"),
        ("made in", "right"),
        ("memory", "right"),
        ("figures", "left"),
    ):
        table.add_column(name, justify=justify, no_wrap=name != "figures")  # type: ignore[arg-type]
    for outcome in outcomes:
        manifest = outcome.manifest
        figures = ", ".join(f"{key} {_figure(value)}" for key, value in list(manifest["metrics"].items())[:4])
        table.add_row(
            outcome.step,
            outcome.status,
            duration(manifest["duration_s"]),
            byte_size(manifest["peak_memory_bytes"]),
            figures,
        )
    return table


def _figure(value: float | int | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def show_result(
    run: "Run", outcomes: "list[Outcome]", seconds: float, console: Console | None = None
) -> "Verdict | None":
    """Print a run's steps, models, verdicts and addresses; return the last verdict."""
    console = console or Console()
    console.print(step_table(outcomes))
    places = {outcome.step: outcome.place for outcome in outcomes}
    verdict = None
    for verdict in verdicts_of(run, places).values():
        show_verdict(verdict, console)
    for label, text in where_to_look(run, places):
        _line(console, label, text)
    _line(console, "time", duration(seconds))
    return verdict


def show_verdict(verdict: "Verdict", console: Console) -> None:
    """Print the models, the decision with its reason, and the gain and loss of smaller models."""
    from flows.console.model_table import model_table
    from tasks.report.words.result import result_of

    result = result_of(verdict)
    console.print(model_table(verdict))
    console.print(result.line, markup=False, highlight=False, style="bold")
    for step in result.further:
        console.print(f"- {step}", markup=False, highlight=False)


def verdicts_of(run: "Run", places: "Mapping[str, Place]") -> "dict[str, Verdict]":
    """Verdicts of a run by step, in plan order."""
    from tasks.shared.formats.verdict import read_verdict

    steps = [step.name for step in run.session.plan.steps if step.kind is Kind.VERDICT]
    return {name: read_verdict(places[name].out / "verdict.json") for name in steps}


def where_to_look(run: "Run", places: "Mapping[str, Place]") -> Iterator[tuple[str, str]]:
    """Yield a label and an address or command for the report, MLflow and the models."""
    session = run.session
    for step in session.plan.steps:
        if step.kind is Kind.REPORT:
            place = places[step.name] if session.variant else session.view(step.name)
            yield "report", str(place.out / "report.html")
    if tracked := where_tracked(run.recorder.tracker):
        yield "MLflow", tracked
    models = [step.name for step in session.plan.steps if step.kind in {Kind.MODEL, Kind.ENGINE}]
    if not session.variant:
        yield "models", str(session.view("").folder)
    elif models:
        shipped = next((found.shipped for found in reversed(verdicts_of(run, places).values())), None)
        name = shipped if shipped in models else models[-1]
        yield "models", str(session.place(name).folder)


def where_tracked(tracker: "Tracker") -> str:
    """Page or server of a tracked run, or the command that shows it; empty for none."""
    address = tracker.address
    if not address or address.startswith("http"):
        return tracker.link or address
    return f"mlflow ui --backend-store-uri {address}   then http://127.0.0.1:5000"


def first_line(error: BaseException) -> str:
    """First line of an error, for a table of jobs."""
    if isinstance(error, ErrorList):
        return f"{len(error.errors)} problems: {first_line(error.errors[0])}"
    return (str(error) or type(error).__name__).splitlines()[0]


def _line(console: Console, label: str, text: str) -> None:
    console.print(f"{label:>7}  {text}", markup=False, highlight=False, soft_wrap=True)
