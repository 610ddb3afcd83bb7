"""Figures of training loss and of block influence in pruning."""

from markupsafe import Markup

from tasks.report.content.report import Pruning, Training
from tasks.report.figures.drawing import WIDTH, Figure, drawing, x_axis, y_axis
from tasks.report.figures.svg import Scale, element, linear_ticks, marker, polyline
from tasks.shared.text.numbers import count, quantity


def loss_figure(training: Training, index: int) -> Figure | None:
    """Draw train and validation loss over steps; None if no loss was logged."""
    train = [(p.step, p.train_loss) for p in training.points if p.train_loss is not None]
    held = [(p.step, p.validation_loss) for p in training.points if p.validation_loss is not None]
    if not train and not held:
        return None
    steps, losses = zip(*train, *held, strict=True)
    room = 0.06 * (max(losses) - min(losses)) or 0.1
    x = Scale(min(steps), max(max(steps), min(steps) + 1), 48, WIDTH - 14)
    y = Scale(max(0.0, min(losses) - room), max(losses) + room, 212, 14)
    parts = y_axis(y, x.start, x.end, [(v, f"{v:g}") for v in linear_ticks(y.low, y.high)])
    parts += x_axis(x, 212, [(v, count(v)) for v in linear_ticks(x.low, x.high) if v == int(v)], "step")
    parts.append(polyline([(x(s), y(v)) for s, v in train], "curve train") if train else Markup(""))
    described = [f"train loss from {quantity(train[0][1])} to {quantity(train[-1][1])}"] if train else []
    if held:
        best = min(held, key=lambda pair: pair[1])
        parts.append(polyline([(x(s), y(v)) for s, v in held], "curve held"))
        parts += [element("g", marker(x(s), y(v), "disc"), class_="held") for s, v in held]
        described.append(
            f"validation loss from {quantity(held[0][1])} to {quantity(held[-1][1])}, lowest {quantity(best[1])} at step {best[0]}"
        )
    title = f"Loss of {training.model}"
    caption = (
        f"{title}: train (thin line)"
        + (" and validation (dots)" if held else "; no validation loss was logged")
        + f". {'; '.join(described).capitalize()}."
    )
    return Figure(title, drawing(f"loss-{index}", title, "; ".join(described) + ".", 254, *parts), caption)


def influence_figure(pruning: Pruning, index: int) -> Figure | None:
    """Draw the influence of each block as bars, dropped blocks outlined; None if not measured."""
    known = [(layer, layer.influence) for layer in pruning.layers if layer.influence is not None]
    if not known:
        return None
    first, last = known[0][0].layer, known[-1][0].layer
    x = Scale(first - 0.5, last + 0.5, 48, WIDTH - 14)
    y = Scale(min(0.0, *(v for _, v in known)), (max(0.0, *(v for _, v in known)) or 1) * 1.05, 212, 14)
    thick = max(1.0, 0.72 * (x.end - x.start) / (last - first + 1))
    parts = y_axis(y, x.start, x.end, [(v, f"{v:g}") for v in linear_ticks(y.low, y.high, 4)])
    for layer, value in known:
        top, foot = min(y(value), y(0)), max(y(value), y(0))
        kind = "dropped" if layer.dropped else "kept"
        parts.append(
            element(
                "rect",
                x=x(layer.layer) - thick / 2,
                y=top,
                width=thick,
                height=max(1.0, foot - top),
                class_=f"layer {kind}",
            )
        )
    parts += x_axis(x, 212, [(v, f"{v:g}") for v in linear_ticks(first, last, 8) if v == int(v)], "layer")
    dropped = [str(layer.layer) for layer, _ in known if layer.dropped]
    title = f"Block influence, {pruning.model}"
    caption = (
        f"{title}: {len(dropped)} of {len(pruning.layers)} blocks dropped (outlined): {', '.join(dropped) or 'none'}."
    )
    alt = "; ".join(
        f"layer {layer.layer} {quantity(value)}{' dropped' if layer.dropped else ''}" for layer, value in known
    )
    return Figure(title, drawing(f"influence-{index}", title, alt + ".", 254, *parts), caption)
