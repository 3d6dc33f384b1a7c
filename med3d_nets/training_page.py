"""The page of a training, from what was collected of its epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from med3d_nets.report_html import (
    NOTHING,
    cards,
    details,
    figure,
    now,
    number,
    page,
    section,
    settings_section,
    settings_title,
    table,
)
from med3d_nets.report_plots import Curves, draw_curves
from med3d_nets.settings import Settings

__all__ = ["best_record", "render_training"]

Record = Mapping[str, Any]
"""``epoch``, ``loss``, ``volumes_per_second``, ``rates`` (by group) and ``validation`` (by metric; empty if none)."""

REFRESH = 30  # seconds


def best_record(records: Sequence[Record], metric: str) -> Record | None:
    """The first of the epochs with the highest finite value of a validation metric, or None."""
    known = [record for record in records if math.isfinite(record["validation"].get(metric, math.nan))]
    return max(known, key=lambda record: record["validation"][metric], default=None)


def render_training(
    records: Sequence[Record],
    max_epochs: int,
    classes: Sequence[str],
    settings: Settings | Mapping[str, Any],
    metric: str,
    weights: str = "",
    running: bool = False,
    scores: Mapping[str, str] | None = None,
) -> str:
    """The page's HTML.

    Args:
        records: one or more epochs, in their order.
        max_epochs: that the training goes on to.
        classes: names of the foreground classes.
        settings: of the network.
        metric: the validation's metric that the best epoch has the highest of.
        weights: file of the best epoch's weights, or empty.
        running: whether more epochs follow; a browser then reads the page again from time to time.
        scores: validation metrics to show, by the name to show; None: Dice of the classes.
    """
    best = best_record(records, metric)
    keys = dict(scores) if scores else _dice_keys(records, classes, metric)
    measure = "" if scores else "Dice "
    validated = [record for record in records if record["validation"]]
    epochs = [record["epoch"] for record in records]
    rates = dict.fromkeys(name for record in records for name in record["rates"])
    panels: dict[str, Curves] = {
        "Training loss": {"loss": (epochs, [record["loss"] for record in records])},
        f"Validation {measure.strip() or 'scores'}": {
            name: _curve(validated, "validation", key) for name, key in keys.items()
        },
        "Learning rate": {name: _curve(records, "rates", name) for name in rates},
        "Volumes per second": {"speed": (epochs, [record["volumes_per_second"] for record in records])},
    }
    panels = {title: curves for title, curves in panels.items() if any(x for x, _ in curves.values())}
    state = "running" if running else "finished" if epochs[-1] >= max_epochs else "stopped"
    plot = figure(draw_curves(panels, best["epoch"] if best else None), f"Curves over epochs: {', '.join(panels)}.")
    header = [
        "epoch",
        "loss",
        *(f"{measure}{name}" for name in keys),
        *(f"rate, {name}" for name in rates),
        "volumes/s",
    ]
    rows = [_row(record, list(keys.values()), list(rates), record is best) for record in records]
    return page(
        f"Training: {settings_title(settings)}",
        f"{state}, epoch {epochs[-1]} of {max_epochs}, {now()}",
        _cards(records[-1], best, keys, metric, weights, measure.strip()),
        section("Curves", plot, details("Numbers of every epoch", table(header, rows))),
        settings_section(settings),
        refresh=REFRESH if running else 0,
    )


def _dice_keys(records: Sequence[Record], classes: Sequence[str], metric: str) -> dict[str, str]:
    """Metrics of the classes that have one by their names, and of all together."""
    keys = {name: f"val_dice_{name.replace(' ', '_')}" for name in classes}
    keys = {name: key for name, key in keys.items() if any(key in record["validation"] for record in records)}
    return keys if len(keys) == 1 else {**keys, "mean": metric}


def _cards(last: Record, best: Record | None, keys: Mapping[str, str], metric: str, weights: str, measure: str) -> str:
    boxes: list[tuple[str, str, list[str]]] = []
    if best:
        measure = measure or next((name for name, key in keys.items() if key == metric), metric)
        each = [
            f"{name} {number(best['validation'].get(key, math.nan))}" for name, key in keys.items() if key != metric
        ]
        saved = [f"saved as {weights}"] if weights else []
        boxes.append(
            (f"Best validation {measure}, epoch {best['epoch']}", number(best["validation"][metric]), each + saved)
        )
    boxes.append((f"Training loss, epoch {last['epoch']}", number(last["loss"], 4), []))
    boxes.append(("Volumes per second", number(last["volumes_per_second"], 2), []))
    return cards(boxes)


def _curve(records: Sequence[Record], part: str, name: str) -> tuple[list[float], list[float]]:
    known = [record for record in records if name in record[part]]
    return [record["epoch"] for record in known], [record[part][name] for record in known]


def _row(record: Record, keys: Sequence[str], rates: Sequence[str], best: bool) -> list[str]:
    scores = [number(record["validation"].get(key, math.nan)) for key in keys]
    steps = [f"{record['rates'][name]:.3g}" if name in record["rates"] else NOTHING for name in rates]
    first = f"{record['epoch']}{' (best)' if best else ''}"
    return [first, number(record["loss"], 4), *scores, *steps, number(record["volumes_per_second"], 2)]
