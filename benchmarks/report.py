# SPDX-License-Identifier: Apache-2.0
"""Write a page and its plots, in the folder of its name, from a file that `make bench` wrote.

    python -m benchmarks.report build/bench.json [docs/performance.md]

Another machine's run makes a page of another name. What a person has to say about the figures of all machines stands in
benchmarks/notes.md and closes performance.md.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from .results import Results, Row, load

PAGE = Path("docs/performance.md")
NOTES = Path(__file__).with_name("notes.md")
ELSEWHERE = f"Notes on what bounds a row, and what was tried: [{PAGE.name}]({PAGE.name}#notes)."
NO_GPU = "No GPU figure exists: everything below was measured on a CPU."
METHOD = """\
Medians of interleaved calls in one process: every callable once per round, in an order drawn anew, right after two
untimed calls of itself (one if that takes a millisecond): after a single one of 10 us the second-level cache still
holds a part of the callable before, and a row would depend on who else is in the table. Cold caches have a table of
their own. Ratios are medians over rounds of rival / native within the same round. Every rival's scores were compared
with float64 first. ONNX Runtime and OpenVINO have their inputs and outputs bound in advance; in bfloat16
ONNX Runtime widens the states, since it has no kernels for them. "By hand" is the ranker in as few PyTorch calls as
there must be; compilers are given that. "matmul": the mean as a product with the mask, not as a sum."""
YARDSTICK = """\
The yardstick reads the very states of the row, between the calls: the fastest of four plain readers (one stream, four
streams, one stream fetched 4 or 8 KiB ahead; `benchmarks/bandwidth.cpp`)."""
COMPLEXITY = """\
With d the width of a state, p the projected width, N candidates in each of B lists, T tokens a candidate, one layer:

| step | arithmetic | bytes that must be read |
|---|---|---|
| mean over tokens | B N T d | B N T d states |
| projection | 2 B (N + 1) d p | B (N + 1) d states, d p weights |
| encoder without attention | 24 B (N + 1) p^2 | 12 p^2 weights |
| attention | 4 B (N + 1)^2 p | nothing new |

Linear in B, d and T; linear in N until attention's square catches up with the projection, at N about d / 2; linear in p
until the encoder catches up, at p about d / 12."""


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"


def time_of(result: dict[str, float]) -> str:
    return f"{number(result['median_us'])} ({number(result['q1_us'])}-{number(result['q3_us'])})"


def ratio_of(result: dict[str, float]) -> str:
    return f"x{result['ratio']:.2f} ({result['ratio_q1']:.2f}-{result['ratio_q3']:.2f})"


def verdict(row: Row) -> str:
    if row.target is None:
        return ""
    met = row.best_rival[1]["ratio"] >= row.target
    return f"x{row.target:g}, {'met' if met else '**missed**'}"


def rows_table(rows: Iterable[Row]) -> str:
    header = ["case", "threads", "native, us (quartiles)", "best rival", "rival / native (quartiles)", "target"]
    lines = []
    for row in rows:
        name, best = row.best_rival
        line = [row.name, str(row.threads), time_of(row.native), name, ratio_of(best), verdict(row)]
        lines.append([*line, number(row.gflops), number(row.gigabytes_per_second)])
    return table([*header, "GFLOP/s", "GB/s"], lines)


def rivals_table(rows: Iterable[Row]) -> str:
    lines = []
    for row in rows:
        others = ", ".join(f"{name} x{result['ratio']:.2f}" for name, result in row.rivals.items())
        lines.append([row.name, row.dtype, str(row.threads), others])
    return table(["case", "dtype", "threads", "times slower than native"], lines)


def reading_table(rows: Iterable[Row]) -> str:
    return table(
        ["case", "dtype", "threads", "share of reading", "GB/s"],
        (
            [row.name, row.dtype, str(row.threads), f"{row.share_of_reading:.0%}", number(row.gigabytes_per_second)]
            for row in rows
            if row.share_of_reading is not None
        ),
    )


def errors_table(rows: Iterable[Row]) -> str:
    return table(
        ["case", "dtype", "native", "eager PyTorch"],
        (
            [row.name, row.dtype, f"{row.errors['native']:.1e}", f"{row.errors['eager']:.1e}"]
            for row in rows
            if row.threads == 1 and not row.cold
        ),
    )


def exponent(values: list[int], times: list[float]) -> float:
    """Of the growth between the last two values."""
    return math.log(times[-1] / times[-2]) / math.log(values[-1] / values[-2])


def sweeps_table(sweeps: list[dict[str, Any]]) -> str:
    lines = []
    for sweep in sweeps:
        for name, results in sweep["series"].items():
            times = [result["median_us"] for result in results]
            letter, (*_, before, last) = sweep["sweep"], sweep["values"]
            grows = f"{exponent(sweep['values'], times):.2f} between {before} and {last}"
            lines.append([letter, name, number(times[0]), number(times[-1]), grows])
    return table(["letter", "what", "first, us", "last, us", "exponent"], lines)


# ---- plots ----------------------------------------------------------------------------------------------------------


def save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def plot_ratios(rows: list[Row], path: Path) -> None:
    """The best rival of every row."""
    rows = [row for row in rows if not row.cold]
    figure, axes = plt.subplots(figsize=(9, 0.8 + 0.28 * len(rows)))
    labels = [f"{row.name}, {row.dtype}, {row.threads}T: {row.best_rival[0]}" for row in rows]
    best = [row.best_rival[1] for row in rows]
    values = [result["ratio"] for result in best]
    spread = [
        [max(0.0, result["ratio"] - result["ratio_q1"]) for result in best],
        [max(0.0, result["ratio_q3"] - result["ratio"]) for result in best],
    ]
    colours = ["tab:blue" if row.dtype == "float32" else "tab:orange" for row in rows]
    axes.barh(labels, values, xerr=spread, color=colours, ecolor="0.4")
    targets = [row.target if row.target is not None else math.nan for row in rows]
    axes.plot(targets, range(len(rows)), "k|", markersize=12, label="target")
    axes.axvline(1, color="0.5", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("time of the best rival / time of native")
    axes.legend(loc="lower right")
    save(figure, path)


def plot_roofline(results: Results, path: Path) -> None:
    """One thread: what a row reaches of what its bytes and its arithmetic allow."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    rows = [row for row in results.rows if row.threads == 1 and not row.cold]
    intensity = [row.flop / row.bytes for row in rows]
    reading = results.machine["bandwidth"].get("1", {}).get("read")
    peaks = results.machine["peak"]["1"]
    grid = [min(intensity, default=0.1) / 2 * 1.3**i for i in range(40)]
    for dtype, colour in (("float32", "tab:blue"), ("bfloat16", "tab:orange")):
        if reading:
            axes.plot(grid, [min(peaks[dtype], reading * x) for x in grid], color=colour, label=f"roof, {dtype}")
        own = [row for row in rows if row.dtype == dtype]
        axes.scatter([row.flop / row.bytes for row in own], [row.gflops for row in own], color=colour)
        for row in own:
            axes.annotate(row.name, (row.flop / row.bytes, row.gflops), fontsize=6)
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="GFLOP/s")
    axes.legend()
    save(figure, path)


def plot_sweep(sweep: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 4))
    for name, results in sweep["series"].items():
        median, low, high = ([result[key] for result in results] for key in ("median_us", "q1_us", "q3_us"))
        (line,) = axes.plot(sweep["values"], median, "o-", label=name)
        axes.fill_between(sweep["values"], low, high, color=line.get_color(), alpha=0.2)
    axes.set(xscale="log", yscale="log", xlabel=sweep["sweep"], ylabel="us", title=f"{sweep['sweep']} varies")
    axes.legend()
    save(figure, path)


# ---- the page -------------------------------------------------------------------------------------------------------


def machine_lines(results: Results) -> str:
    machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"- {machine['cpu']} ({', '.join(machine['flags'])}), {machine['cores']} cores, "
        f"caches {' / '.join(f'{size >> 10} KiB' for size in machine['caches'].values()) or 'unknown'}",
        f"- kernels for {machine['isa']}, compiled by gcc {machine['compiler']}",
        f"- {versions}",
        f"- commit {machine['commit'][:12]}{', with uncommitted changes' * machine['dirty']}, {results.date[:10]}, "
        f"load average {machine['load'][0]:.1f} at the start",
    ]
    for threads, rates in machine["bandwidth"].items():
        if rates:
            peaks = ", ".join(f"{dtype} {number(rate)}" for dtype, rate in machine["peak"][threads].items())
            lines.append(
                f"- {threads} thread{'s' * (threads != '1')}: reading {number(rates['read'])} GB/s, copying "
                f"{number(rates['copy'])} GB/s ({machine['mebibytes']} MiB, in plus out); a square product of "
                f"{machine['side']} reaches {peaks} GFLOP/s"
            )
    return "\n".join(lines)


def page(results: Results, plots: str, notes: str) -> str:
    warm = [row for row in results.rows if not row.cold]
    cold = [row for row in results.rows if row.cold]
    parts = [
        "# Performance",
        NO_GPU,
        "Written by `make bench-report` from one run of `make bench`; only the notes at the end are a person's.",
        machine_lines(results),
        METHOD,
        "## Native against the best rival",
        f"![ratios]({plots}/ratios.png)",
    ]
    for dtype in dict.fromkeys(row.dtype for row in warm):
        parts += [f"### {dtype} states and weights", rows_table(row for row in warm if row.dtype == dtype)]
    if cold:
        parts += ["### Cold caches, as after a step of a language model", rows_table(cold)]
    parts += ["## Mean over tokens: how near to plain reading"]
    parts += [
        YARDSTICK,
        reading_table(warm),
        "## Roofline",
        f"![roofline]({plots}/roofline.png)",
        "## How the cost grows",
        COMPLEXITY,
    ]
    if results.sweeps:
        parts += ["Measured, one thread, d = 4096 and p = 64 unless they vary:", sweeps_table(results.sweeps)]
        parts += [f"![{sweep['sweep']}]({plots}/sweep_{sweep['sweep']}.png)" for sweep in results.sweeps]
    parts += [
        "## Every rival",
        rivals_table(results.rows),
        "## Largest error of a score against float64",
        errors_table(results.rows),
        notes,
    ]
    return "\n\n".join(parts) + "\n"


def write(results: Results, path: Path) -> None:
    plots = path.with_suffix("")
    plots.mkdir(parents=True, exist_ok=True)
    plot_ratios(results.rows, plots / "ratios.png")
    plot_roofline(results, plots / "roofline.png")
    for sweep in results.sweeps:
        plot_sweep(sweep, plots / f"sweep_{sweep['sweep']}.png")
    notes = NOTES.read_text().strip() if path.name == PAGE.name else ELSEWHERE
    path.write_text(page(results, plots.name, notes))


def main(arguments: list[str]) -> int:
    if len(arguments) not in (1, 2):
        print("usage: python -m benchmarks.report bench.json [page.md]", file=sys.stderr)
        return 2
    path = Path(arguments[1]) if len(arguments) > 1 else PAGE
    if path.suffix != ".md":
        print(f"bench-report: the page must be a .md file, got {path}", file=sys.stderr)
        return 2
    try:
        results = load(arguments[0])
    except (OSError, ValueError) as error:
        print(f"bench-report: {error}", file=sys.stderr)
        return 2
    if not results.rows:
        print(f"bench-report: {arguments[0]} has no row of the table", file=sys.stderr)
        return 2
    write(results, path)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
