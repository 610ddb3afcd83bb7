"""What a run shows a person: the plan before, the table of models and where everything is after."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from flows.config import Runtime
from flows.estimate import Estimate, estimate_plan
from flows.plan import Plan, Step

if TYPE_CHECKING:
    from flows.runner import Outcome, Run


def show_plan(plan: Plan, runtime: Runtime, console: Console | None = None) -> None:
    """Print the plan as a table of costs, as a tree of what feeds what, and as mermaid text for documents."""
    console = console or Console()
    estimates = estimate_plan(plan, runtime)
    console.print(cost_table(plan, estimates))
    console.print(tree(plan))
    console.print("mermaid (paste it into Markdown):", style="bold")
    console.print(mermaid(plan), markup=False, highlight=False, soft_wrap=True)


def cost_table(plan: Plan, estimates: dict[str, Estimate]) -> Table:
    """Every step with its technique, inputs and forecast."""
    table = Table(
        title=f"plan of {plan.recipe}: {len(plan.steps)} steps", caption="forecast; * measured in an earlier run here"
    )
    for name, justify in (
        ("step", "left"),
        ("technique", "left"),
        ("reads", "left"),
        ("time", "right"),
        ("disk", "right"),
        ("memory", "right"),
    ):
        table.add_column(name, justify=justify, no_wrap=name != "reads")  # type: ignore[arg-type]
    for step in plan.steps:
        item = estimates[step.name]
        table.add_row(
            step.name,
            technique_name(step),
            ", ".join(step.needs),
            f"{duration(item.seconds)}{'*' if item.measured else ''}",
            bytes_text(item.disk_bytes),
            bytes_text(item.memory_bytes),
        )
    total = sum(item.seconds for item in estimates.values())
    table.add_section()
    table.add_row(
        "all",
        "",
        "",
        duration(total),
        bytes_text(sum(item.disk_bytes for item in estimates.values())),
        bytes_text(max(item.memory_bytes for item in estimates.values())),
    )
    return table


def tree(plan: Plan) -> Tree:
    """The graph as a tree: each step under the first step that feeds it; its other inputs in brackets."""
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
    """The input a reader would expect a step under: the latest one made before it."""
    order = {name: index for index, name in enumerate([*plan.sources, *(item.name for item in plan.steps)])}
    return max(step.needs, key=order.__getitem__, default=None)


def mermaid(plan: Plan) -> str:
    """The graph as mermaid text."""
    lines = ["graph LR"]
    lines += [f"  {name.replace('.', '_')}[({name})]" for name in plan.sources]
    lines += [f'  {step.name}["{step.name}<br/>{technique_name(step)}"]' for step in plan.steps]
    lines += [f"  {name.replace('.', '_')} --> {step.name}" for step in plan.steps for name in step.needs]
    return "\n".join(lines)


def technique_name(step: Step) -> str:
    """Stage and technique as Hydra names them, such as prune/depth."""
    return "/".join(step.target.split(".")[1:3])


def duration(seconds: float) -> str:
    """Seconds for people."""
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.1f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def bytes_text(count: float) -> str:
    """Bytes for people, decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit in {"B", "kB", "MB"} else f"{count:.1f} {unit}"
        count /= 1000
    return ""


def step_table(outcomes: "list[Outcome]") -> Table:
    """What each step did, and how long it took to make."""
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
            bytes_text(manifest["peak_memory_bytes"]),
            figures,
        )
    return table


def _figure(value: float | int | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def show_result(run: "Run", outcomes: "list[Outcome]", seconds: float, console: Console | None = None) -> str | None:
    """Print the steps, the table of models, the verdict and where to look; returns the decision, if the recipe has a verdict."""
    console = console or Console()
    console.print(step_table(outcomes))
    places = {outcome.step: outcome.place for outcome in outcomes}
    decision = None
    for step in run.session.plan.steps:
        if step.stage == "evaluate":
            decision = _show_verdict(places[step.name].out, console)
    for step in run.session.plan.steps:
        if step.stage == "report":
            _line(console, "report", str(places[step.name].out / "report.html"))
    _line(console, "MLflow", where_tracked(run.tracker.address, run.session.runtime.folder))
    _line(console, "models", str(run.session.store.canonical(run.session.plan.recipe, "").folder))
    _line(console, "time", duration(seconds))
    return decision


def where_tracked(address: str, root: Path) -> str:
    """Where to look at the runs: the server's own page, or the command that shows a database."""
    if address.startswith("http"):
        return address
    database = address or f"sqlite:///{root / 'mlflow.db'}"
    return f"mlflow ui --backend-store-uri {database}   then http://127.0.0.1:5000"


def _show_verdict(out, console: Console) -> str:  # type: ignore[no-untyped-def]
    from tasks.report.table import decision_line, model_table
    from tasks.shared.verdict import read_verdict

    verdict = read_verdict(out / "verdict.json")
    console.print(model_table(verdict))
    console.print(decision_line(verdict), markup=False, highlight=False, style="bold")
    return str(verdict.decision)


def _line(console: Console, label: str, text: str) -> None:
    console.print(f"{label:>7}  {text}", markup=False, highlight=False, soft_wrap=True)
