# SPDX-License-Identifier: Apache-2.0
"""A folder of evidence from what :func:`srr_fast.evaluate.evaluate` gives: metrics.json, tables.md and plots."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from .checkpoint import replace
from .extras import require

METRICS_FILE, TABLES_FILE = "metrics.json", "tables.md"
Summary = Mapping[str, Any]


def write(folder: Path, report: Mapping[str, Any]) -> list[Path]:
    """Write the report; returns the files, metrics.json last. Each is written whole, and none before all are made.

    Raises ImportError without matplotlib, ValueError for a number that is not finite.
    """
    scorers = scorers_of(report)
    files = {
        TABLES_FILE: tables(report).encode(),
        "top1.png": bars(scorers, "top1", "top-1 safe"),
        "auc.png": bars(scorers, "auc", "AUC within lists"),
    }
    if report["calibration"] is not None:
        files["reliability.png"] = reliability(report["calibration"]["all"])
    files[METRICS_FILE] = (json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        replace(folder / name, data)
    return [folder / name for name in files]


def scorers_of(report: Mapping[str, Any]) -> dict[str, Summary]:
    """The ranker's summary and those of the baselines, by name."""
    return {"ranker": report, **report["baselines"]}


def tables(report: Mapping[str, Any]) -> str:
    """Markdown: every scorer on every source, the ranker with intervals, differences, unsafe rates, calibration."""
    sources = [*report["sources"]]
    scorers = scorers_of(report)
    parts = [
        "# Evaluation\n\nTop-1 safe and AUC are of lists with a safe and an unsafe response; the mean is over sources. "
        "Intervals: 95 %, bootstrap over lists.",
        "## Top-1 safe / AUC\n\n"
        + _table(
            ["scorer", *sources, "mean"],
            [
                [name, *(f"{_cell(e['top1'])} / {_cell(e['auc'])}" for e in _entries(one))]
                for name, one in scorers.items()
            ],
        ),
        "## The ranker\n\n" + _with_intervals(report, ("top1", "auc", "ndcg")),
    ]
    if differences := {name: one["ranker_minus"] for name, one in report["baselines"].items()}:
        parts += [
            f"## The ranker minus each baseline, {label}\n\n"
            + _table(
                ["baseline", *sources, "mean"],
                [
                    [name, *(_interval(entry, metric, "+") for entry in _entries(one))]
                    for name, one in differences.items()
                ],
            )
            for metric, label in (("top1", "top-1 safe"), ("auc", "AUC"))
        ]
    parts.append(
        "## Unsafe responses that go out, of all lists\n\n"
        "first: without a ranker; any: one drawn at random; oracle: a safe one wherever there is one.\n\n"
        + _with_intervals(report["unsafe_rate"], ("first", "any", "chosen", "oracle"))
    )
    if report["calibration"] is not None:
        found = {**report["calibration"]["sources"], "all": report["calibration"]["all"]}
        rows = [[name, _cell(e["ece"]), _cell(e["brier"]), str(e["n_responses"])] for name, e in found.items()]
        parts.append("## Calibration\n\n" + _table(["source", "calibration error", "Brier", "responses"], rows))
    return "\n\n".join(parts) + "\n"


def bars(scorers: Mapping[str, Summary], metric: str, label: str) -> bytes:
    """PNG: a metric of every scorer on every source that has one, and the mean, with intervals."""
    first = next(iter(scorers.values()))
    entries = {name: [*one["sources"].values(), one["mean"]] for name, one in scorers.items()}
    places = [*first["sources"], "mean"]
    shown = [i for i, entry in enumerate(next(iter(entries.values()))) if entry[metric] is not None]
    figure = _figure(width=2 + 0.25 * (len(shown) + 1) * (len(scorers) + 1))
    axes = figure.subplots()
    width = 0.8 / len(scorers)
    colours = ["black", *require("matplotlib").colormaps["tab20"].colors]
    for at, (name, found) in enumerate(entries.items()):
        values = [found[i][metric] for i in shown]
        ends = [found[i]["ci95"][metric] for i in shown]
        # Percentiles of a skewed sample may leave the value outside.
        errors = [[max(v - low, 0) for v, (low, _) in zip(values, ends, strict=True)]]
        errors += [[max(high - v, 0) for v, (_, high) in zip(values, ends, strict=True)]]
        x = [i + (at - (len(scorers) - 1) / 2) * width for i in range(len(shown))]
        ticks = {"capsize": 1.5, "error_kw": {"linewidth": 0.8, "ecolor": "0.5"}}
        axes.bar(x, values, width, yerr=errors, label=name, color=colours[at % len(colours)], **ticks)
    axes.set_xticks(range(len(shown)), [places[i] for i in shown], rotation=25, ha="right")
    axes.set_ylim(0, 1.02)
    axes.set_ylabel(label)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return _png(figure)


def reliability(entry: Mapping[str, Any]) -> bytes:
    """PNG: the share of safe responses against predicted safety, and how many responses are in each bin."""
    figure = _figure(width=5, height=5)
    curve, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    bins = entry["bins"]
    some = [i for i, count in enumerate(bins["counts"]) if count]
    curve.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    curve.plot([bins["predicted"][i] for i in some], [bins["observed"][i] for i in some], marker="o")
    curve.set_ylabel("share of safe responses")
    curve.set_ylim(-0.02, 1.02)
    if entry["ece"] is not None:
        curve.set_title(f"calibration error {entry['ece']:.3f}", fontsize=10)
    edges = bins["edges"]
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    counts.bar(middles, bins["counts"], width=edges[1] - edges[0], edgecolor="white")
    counts.set_xlabel("predicted safety")
    counts.set_ylabel("responses")
    counts.set_xlim(0, 1)
    return _png(figure)


def curves(history: Sequence[Mapping[str, float]]) -> bytes:
    """Losses over the optimiser's steps, as :func:`srr_fast.train.train` gives them."""
    figure = _figure(6)
    axes = figure.subplots()
    for key, label in (("loss", "training"), ("eval_loss", "validation")):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=label)
    axes.set(xlabel="step", ylabel="loss")
    if axes.lines:
        axes.legend(frameon=False)
    return _png(figure)


def _with_intervals(summary: Summary, columns: Sequence[str]) -> str:
    rows = [
        [name, *(_interval(entry, column) for column in columns), str(entry["n_lists"])]
        for name, entry in zip([*summary["sources"], "mean"], _entries(summary), strict=True)
    ]
    return _table(["source", *columns, "lists"], rows)


def _interval(entry: Mapping[str, Any], column: str, sign: str = "") -> str:
    ends = entry["ci95"][column]
    return "-" if ends is None else f"{_cell(entry[column], sign)} [{_cell(ends[0], sign)}, {_cell(ends[1], sign)}]"


def _entries(summary: Summary) -> list[Mapping[str, Any]]:
    return [*summary["sources"].values(), summary["mean"]]


def _cell(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines)


def _escaped(cell: str) -> str:
    return " ".join(cell.replace("|", "\\|").split())


def _figure(width: float, height: float = 3.6) -> Any:
    return require("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")


def _png(figure: Any) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150)
    return data.getvalue()
