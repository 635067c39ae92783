# SPDX-License-Identifier: Apache-2.0
"""docs/evidence.md, its plots and its JSON from the numbers, and from nothing else."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from srr_fast import report
from srr_fast.checkpoint import replace
from srr_fast.extras import require

from .evidence_sections import KERNEL, LAST, PAPER, PAPER_TOKEN, SRR, TFIDF

FOLDER = "evidence"
HARD = "saferlhf_mini"
Numbers = Mapping[str, Any]

HEAD = """# Evidence

Does ranking a model's own hidden states by safety work on real labelled lists, and what does each part of it earn?
Everything here is written by `make evidence DATA=<folder of lists>`; the numbers alone are in
[evidence.json](evidence/evidence.json). Brackets are 95 % intervals by bootstrap over lists (of each source on its own;
a mean counts every source once); differences are paired. Top-1 is the share of lists whose best-scored response is
safe, AUC the share of safe-unsafe pairs of a list in the right order; both are of lists with both kinds. In short:
*SRR* is what `srr-fast train` makes by default (layers {layers}, mean pooling, scope pair, p = 64, distilled from a
kernel machine); *listwise* is the recipe of the paper (one layer, scope list, KL), layer {middle}.
"""
TRIED = """Tried by hand in cross-validation over train lists, most of it with two draws of the folds, and left out
because it gained less than 0.008 in top-1, mean over the core sources. Gains are over the kernel machine as it is,
with the standard error over lists; gptfuzz, where top-1 is 1, was not run again.

- About as good: other ridges, several widths at once, the sixth layer, 512 components, the instruction's states, a
  logistic loss in place of the squared one (saferlhf_mini -0.008 +- 0.011), the mean of eight kernel machines on
  draws of the lists (saferlhf_mini -0.004 +- 0.011), scores added to those of TF-IDF + LR (0.000 +- 0.004).
- A kernel half as wide with a level of its own for each list: diasafety +0.009 +- 0.007, safetext +0.006 +- 0.004,
  saferlhf_mini -0.008 +- 0.014, mean +0.002 +- 0.004. With the lists of both kinds weighing three times: mean
  +0.003 +- 0.004. A ranker learned from the first was no better, as far as that was run.
- Both texts as one segment, or with "question:" and "answer:" before them: nothing. The encoder reads the response
  before the instruction, the other way round until then: saferlhf_mini +0.019 +- 0.012 in five draws of the folds,
  diasafety +0.004 +- 0.009, safetext +0.001 +- 0.003, mean +0.006 +- 0.004. Less than 0.008 and not certain, but
  better in each draw and no dearer, so kept.
- With the response read first, 57 more: the sixth layer with or in place of others (alone -0.031 +- 0.008), the
  instruction's tokens, all tokens, [CLS], [SEP], the largest values, the first or last 32 tokens beside the response's
  mean or in a kernel of their own, other widths and ridges (also one chosen within the training lists), a quadratic
  part, states less the mean of their list, both orders together (-0.003 to -0.001 +- 0.003). The best, a quarter of a
  kernel of the instruction's tokens, came to +0.004 +- 0.004 with two draws of the folds and to 0.000 +- 0.003 with
  three others. The kernel machine itself moves by 0.005 from draw to draw (standard deviation of five).
- Worse: 128 components, components whitened or the large ones stressed, a kernel per layer, the mean over triples
  of layers or over random components, a kernel of absolute differences (saferlhf_mini -0.060 +- 0.021), a linear
  part, the embeddings as a layer more, mean and last token together, the tokens' deviation beside their mean,
  tokens weighted by rarity (seen in the AUC over all responses of saferlhf_mini), what the instruction's states do
  not predict (saferlhf_mini -0.050 +- 0.026), directions damped along which lists differ from each other, a metric
  learned from the kernel machine's gradients.
- A cross-encoder as teacher, MiniLM's upper four layers fine-tuned on the same texts, one draw of the folds and one
  seed: by itself saferlhf_mini -0.016 +- 0.028, diasafety -0.020 +- 0.015; half of it with half of the kernel machine
  -0.024 +- 0.016 and +0.002 +- 0.010; a quarter of it -0.008 +- 0.011 and +0.011 +- 0.006. Its labels of new pairs
  (responses under a similar list's instruction, words left out), learned by the kernel machine with the real ones:
  saferlhf_mini -0.016 to -0.008 +- 0.015, diasafety (four of the folds) -0.002 to +0.004 +- 0.008.
- More examples with their labels kept, saferlhf_mini, two draws: halves of responses and words left out -0.034 to
  -0.014 +- 0.018, by their weight; words left out alone -0.006 +- 0.010 (diasafety, one draw, four of the folds:
  +0.004 +- 0.007); under another list's instruction -0.004 to -0.002 +- 0.008.
- Labels of other sources in the same kernel machine, two draws: between sources the kernel counts for a part of what
  it counts within one. saferlhf_mini with diasafety, a tenth to a half: -0.010 to +0.004 +- 0.010, the whole -0.032 to
  -0.010 +- 0.020; with jailjudge_mini, gptfuzz and xstest_unsafe, a tenth to a half: -0.007 to +0.004 +- 0.010, the
  whole -0.049 to -0.042 +- 0.020; diasafety with saferlhf_mini, the same parts: -0.002 to +0.003 +- 0.006, the whole
  -0.013 to -0.005 +- 0.009. Pairs of hh_harmless_test as differences to be learned, six settings: saferlhf_mini -0.004
  to +0.021 +- 0.014, mean of all +0.004; the machine as it is orders 0.63 of these pairs as people did.
- The ranker orders about nine pairs in ten of a saferlhf_mini list as the kernel machine does and is 0.004 to 0.028
  below it there, by draw of the folds and seed. Drawing half of what it learns from close to real states makes that
  fewer pairs, since there the kernel machine repeats its labels; top-1 came out higher by 0.012 and 0.004, within
  the error (0.015), and no other source was run.
"""
LIMITS = """## Limits

- Labels are what each source gives: people (saferlhf_mini, diasafety, safetext, gptfuzz, xstest_unsafe), or judge
  models (jbb_artifacts, past_tense); compliance stands for harm in xstest_unsafe. Some are wrong.
- The backbone is a sentence encoder that reads finished texts, not a chat model that writes them: the states of a
  larger causal model may say more, or less. minichat is a causal model, but small, and its harm is mild and made by a
  grammar.
- The sets are small, so intervals are wide; folds are by near-duplicate instruction (word Jaccard 0.6), and what is
  alike in other ways may be on both sides.
- What SRR is by default (layers, kernel and ridge, size and scope of the network) was chosen by cross-validation over
  mostly the same lists, one choice for all sources: SRR and the kernel machine come out a little too well above.
- In xstest_unsafe, jbb_artifacts and past_tense the model that answered nearly gives the label away: a high score there
  can be recognition of a style. In gptfuzz short answers are mostly safe.
- No guard model is in these tables, and a fine-tuned cross-encoder only where train goes to val; `srr-fast eval
  --baselines cross-encoder guard:ID` measures them on your lists.
- saferlhf_mini is for non-commercial use: no weights trained here are kept or shipped.
"""


def write(out: Path, result: Numbers) -> list[Path]:
    """The files written, the document last."""
    plots = {name: made for name, make in PLOTS.items() if (made := _plot(make, result)) is not None}
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    files = {folder / "evidence.json": (json.dumps(result, indent=1, allow_nan=False) + "\n").encode()}
    files |= {folder / f"{name}.png": data for name, data in plots.items()}
    files[out / "evidence.md"] = page(result, plots.keys()).encode()
    for path, data in files.items():
        replace(path, data)
    return [*files]


def page(result: Numbers, plots: Iterable[str] = ()) -> str:
    """The document. Sections without numbers are left out, and named at the end."""
    about = result["about"]
    parts = [HEAD.format(layers=", ".join(map(str, about["read"])), middle=max(about["layers"] // 2, 1))]
    if about["quick"]:
        parts.append("**A quick run on a few lists: these numbers mean nothing.**\n")
    for key, title, text, shown in PARTS:
        if key in result:
            parts.append(f"## {title}\n\n{text(result).strip()}\n")
            parts += [f"![{shown}]({FOLDER}/{shown}.png)\n"] * (shown in plots)
    parts.append(f"## What did not work\n\n{did_not_work(result)}\n\n{TRIED}")
    parts.append(LIMITS)
    sources = ", ".join(f"{name} {count}" for name, count in about["sources"].items())
    parts.append(
        f"## The run\n\n{about['fits']} fits, {about['core_minutes_of_fits']:.1f} core-minutes, on {about['cpu']}; "
        f"model {about['model']}, {about['layers']} layers. Lists with a label in train and val, those to learn "
        f"from alone included: {sources}.\n"
    )
    if result["failed"]:
        parts.append(f"Not measured, because of an error: {', '.join(result['failed'])}.\n")
    return "\n".join(parts)


def answer(result: Numbers) -> str:
    """Every goal with its number, met or missed."""
    rows = []
    where = [("main", f"{result['about']['folds']}-fold cross-validation, 1 seed")]
    where += [("split", f"train to val, {result['about']['seeds']} seeds")] * ("split" in result)
    for key, label in where:
        srr = result[key]["scorers"][SRR]
        gain = result[key]["differences"][f"{SRR} minus {TFIDF}"]["mean"]
        rows += [
            _goal("mean top-1", label, srr["mean"], "top1", 0.88),
            _goal("mean top-1 above TF-IDF + LR", label, gain, "top1", 0.05),
            _goal("mean AUC", label, srr["mean"], "auc", 0.85),
        ]
        if HARD in srr["sources"]:
            rows.append(_goal(f"{HARD} top-1", label, srr["sources"][HARD], "top1", 0.72))
    if "one" in result:
        gap = result["one"]["differences"][f"one for the core minus {SRR}"]["mean"]
        rows.append(
            _goal("one ranker for all core sources minus one each, top-1", "cross-validation", gap, "top1", -0.02)
        )
    if "16" in result.get("minichat", {}).get("n", {}):
        gap = result["minichat"]["n"]["16"]["chosen minus oracle"]
        good = "met" if gap["value"] <= 0.02 else "**missed**"
        rows.append(
            ["minichat, n = 16: unsafe rate above the oracle's", "held-out instructions", _found(gap), "<= 0.02", good]
        )
    missed = sum(row[-1] != "met" for row in rows)
    text = f"Of {len(rows)} goals {len(rows) - missed} are met and {missed} missed." if missed else "All goals are met."
    return f"{text}\n\n" + _table(["goal", "how", "found", "wanted", ""], rows)


def _goal(name: str, how: str, entry: Numbers, column: str, least: float) -> list[str]:
    good = entry[column] is not None and entry[column] >= least
    return [name, how, _interval(entry, column), f">= {least:.2f}", "met" if good else "**missed**"]


def main(result: Numbers) -> str:
    found = result["main"]
    rows = [[name, *map(str, one.values())] for name, one in found["majority"].items()]
    return "\n\n".join(
        [
            f"{result['about']['folds']}-fold cross-validation over train and val, folds by cluster of near-duplicate "
            "instructions, no instruction of a held-out list in training, 1 seed. Per source one ranker, trained on "
            "its lists and on its responses that make no list. The probe is a logistic regression on the same states; "
            "TF-IDF + LR reads the same texts; refusal words, shortest and random learn nothing.",
            _table(["source", "lists measured", "responses", "other lists to learn from", "clusters"], rows),
            "Top-1:",
            _scorers(found["scorers"], "top1"),
            "AUC:",
            _scorers(found["scorers"], "auc"),
            "Differences, top-1 and AUC:",
            _differences(found["differences"]),
        ]
    )


def split(result: Numbers) -> str:
    found = result["split"]
    rows = [
        [name, *(_interval(one["mean"], column) for column in ("top1", "auc")), _each(one["seeds"]["top1"])]
        for name, one in found["scorers"].items()
    ]
    return (
        "Trained on train, stopped and calibrated on val, measured on val: few lists. Scorers that learn with a seed "
        "have the mean over seeds per list. The cross-encoder is the whole encoder fine-tuned on the same texts, at "
        "most 16 responses of a list, three epochs, 1 seed, and does not see val.\n\n"
        + _scorers(found["scorers"], "top1")
        + "\n\nMean over sources:\n\n"
        + _table(["scorer", "top-1", "AUC", "top-1 of each seed"], rows)
        + "\n\n"
        + _differences(found["differences"])
    )


def one(result: Numbers) -> str:
    found = result["one"]
    text = (
        "The same folds, 1 seed. *one for the core*: a single ranker trained on all core sources; *one for all*: on "
        "all sources with harm labels.\n\nTop-1:\n\n" + _scorers(found["scorers"], "top1") + "\n\nAUC:\n\n"
        + _scorers(found["scorers"], "auc") + "\n\n" + _differences(found["differences"])
    )  # fmt: skip
    if any(scores["sources"] for scores in found["elsewhere"].values()):
        text += "\n\nOn other lists, never trained on the instruction, AUC:\n\n" + _scorers(found["elsewhere"], "auc")
    return text


def sweep(result: Numbers) -> str:
    found = result["sweep"]
    return (
        "The learner is the kernel machine that SRR is distilled from, one layer at a time, trained on the mixed lists "
        "alone, cross-validation as above, 1 seed. The last row reads "
        "several layers.\n\nTop-1:\n\n" + _scorers(found["cells"], "top1") + "\n\nAUC:\n\n"
        + _scorers(found["cells"], "auc") + "\n\n" + _differences(found["differences"])
    )  # fmt: skip


def ablation(result: Numbers) -> str:
    found = result["ablation"]
    folds = result["about"]["ablation_folds"]
    return (
        f"Of two sources {folds} of {result['about']['folds']} folds, 1 seed: wide intervals; everything but the named "
        "change as in SRR. Listwise, pairwise and pointwise learn from the labels themselves, by the same network on "
        "the same five layers.\n\n"
        + _scorers(found["scorers"], "top1") + "\n\n" + _differences(found["differences"])
    )  # fmt: skip


def size(result: Numbers) -> str:
    rows = [
        [
            one["lists"],
            one["learner"],
            *(_interval(entry, "top1") for entry in (*one["sources"].values(), one["mean"])),
            str(one["draws"]),
        ]
        for one in result["size"]["rows"]
    ]
    first = result["size"]["rows"][0]
    return (
        "Top-1 of the kernel machine on the middle layer and of TF-IDF + LR trained on so many "
        "mixed lists of a source (mean over draws), "
        "cross-validation.\n\n" + _table(["lists", "learner", *first["sources"], "mean", "draws"], rows)
    )


def candidates(result: Numbers) -> str:
    return (
        f"gptfuzz, n responses drawn from each list {result['candidates']['draws']} times, held-out scores of the main "
        "table, 1 seed. Share of draws in which an unsafe response goes out.\n\n" + _by_n(result["candidates"]["n"])
    )


def cross(result: Numbers) -> str:
    return (
        "Kernel machine trained on the source of the row, four fifths of the clusters, measured on the other fifth of "
        "the source of the column; every list is measured once, never with its instruction, or one alike, in training. "
        "Within-list AUC, then top-1; 1 seed.\n\n" + _scorers(result["cross"]["rows"], "auc", "trained on")
        + "\n\n" + _scorers(result["cross"]["rows"], "top1", "trained on")
    )  # fmt: skip


def care(result: Numbers) -> str:
    parts = []
    for key, text in (
        ("overrefusal", "XSTest prompts that are safe to answer, with answers labelled as full compliance or full "
         "refusal by people. AUC of compliance over refusal: below 0.5 the scorer prefers refusals. "
         "Cross-validation, 1 seed."),
        ("fairness", "BBQ, ambiguous questions: safe is the answer that names no group. Trained on train lists of BBQ, "
         "or on harm alone; measured on val lists. 1 seed."),
    ):  # fmt: skip
        if result["care"][key]:
            rows = [
                [name, *(_interval(one, column) for column in ("top1", "auc")), str(one["n_lists"])]
                for name, one in result["care"][key].items()
            ]
            parts.append(f"{text}\n\n" + _table(["scorer", "top-1", "AUC", "lists"], rows))
    return "\n\n".join(parts)


def shortcut(result: Numbers) -> str:
    found = result["shortcut"]
    rows = [
        [scorer, source, *(f"{_found(kinds[kind])} ({kinds[kind]['n_lists']})" for kind in kinds)]
        for scorer, sources in found["pairs"].items()
        for source, kinds in sources.items()
    ]
    kinds = list(next(iter(next(iter(found["pairs"].values())).values())))
    calibrated = {**found["calibration"]["sources"], "all": found["calibration"]["all"]}
    return (
        "AUC over the safe-unsafe pairs of a list that a shortcut does not decide, or decides wrongly (lists with such "
        "pairs in parentheses). Held-out scores of the main table.\n\n" + _table(["scorer", "source", *kinds], rows)
        + "\n\nCalibration: logistic regression on the held-out scores of the other folds.\n\n"
        + _table(
            ["source", "calibration error", "Brier", "responses"],
            [[name, _number(e["ece"]), _number(e["brier"]), str(e["n_responses"])] for name, e in calibrated.items()],
        )
    )  # fmt: skip


def live(result: Numbers) -> str:
    found = result["minichat"]
    harmful, harmless = found["instructions"]
    keys = ("first", "chosen", "oracle", "benign well-formed, first", "benign well-formed, chosen")
    rows = [[n, *(_found(one[key]) for key in keys)] for n, one in found["n"].items()]
    gap = [(n, one["chosen minus oracle"]) for n, one in found["n"].items()]
    return (
        f"The bundled model and ranker (layer {found['layer']}), {harmful} harmful and {harmless} harmless held-out "
        f"instructions, {found['answers']} answers each at temperature 1, judged exactly; n of them drawn 100 times. "
        "Unsafe rate of the harmful ones, share well-formed of the harmless ones; 1 seed.\n\n"
        + _table(["n", *keys], rows)
        + "\n\nChosen minus oracle: " + "; ".join(f"n = {n}: {_found(one)}" for n, one in gap) + "."
    )  # fmt: skip


def cost(result: Numbers) -> str:
    found, scorers = result["cost"], result.get("main", {}).get("scorers", {})
    rows = [
        [
            name,
            f"{one['flop']:,}",
            f"{one['parameters']:,}",
            f"{one['us']:,.0f} ({one['quartiles'][0]:,.0f}-{one['quartiles'][1]:,.0f})",
            _number(scorers.get(name.removesuffix(", reference"), {}).get("mean", {}).get("top1")),
        ]
        for name, one in found["rows"].items()
    ]
    return (
        f"One list of {found['candidates']} responses, one thread, median and quartiles of one interleaved run. SRR, "
        "the probe and the kernel machine start from pooled states, which a model that writes its answers leaves "
        "behind; where another model has to read the texts, the last row comes on top. Top-1 is the mean "
        "of the main table.\n\n" + _table(["scorer", "FLOP", "parameters", "us", "top-1"], rows)
    )


def did_not_work(result: Numbers) -> str:
    """Comparisons that came out against the method or undecided, read off the numbers."""
    lines = []
    named = [
        ("main", f"{SRR} minus probe", "a logistic regression on the same states"),
        ("main", f"{SRR} minus {KERNEL}", "the kernel machine it is distilled from"),
        ("main", f"{SRR} minus {PAPER}", "the network trained on the labels as in the paper"),
        ("main", f"{SRR} minus {TFIDF}", "text alone, TF-IDF + LR"),
    ]
    for key, name, what in named:
        if key in result and name in result[key]["differences"]:
            entry = result[key]["differences"][name]["mean"]
            lines.append(f"- SRR against {what}: top-1 {_interval(entry, 'top1', '+')}, {_verdict(entry)}.")
    if "main" in result:
        entry = result["main"]["differences"][f"{PAPER} minus {PAPER_TOKEN}"]["mean"]
        other = result["main"]["differences"][f"{KERNEL} minus {LAST}"]["mean"]
        lines.append(
            f"- The kernel machine on SRR's layers against the last layer: top-1 {_interval(other, 'top1', '+')}, "
            f"{_verdict(other)}."
        )
        lines.append(
            f"- Mean pooling against the last token, listwise: top-1 {_interval(entry, 'top1', '+')}, "
            f"{_verdict(entry)}."
        )
    for key in ("sweep", "ablation"):
        for name, one in result.get(key, {}).get("differences", {}).items():
            lines.append(f"- {name}: top-1 {_interval(one['mean'], 'top1', '+')}, {_verdict(one['mean'])}.")
    rows = {(one["learner"], one["lists"]): one["mean"]["top1"] for one in result.get("size", {}).get("rows", ())}
    if "main" in result and (mixed := rows.get((TFIDF, "all mixed"))) is not None:
        srr, text = (result["main"]["scorers"][name]["mean"]["top1"] for name in (SRR, TFIDF))
        lines.append(
            f"- {TFIDF} from the mixed lists alone has top-1 {_number(mixed)}, in the main table {_number(text)}: "
            f"over the better of the two SRR gains {_number(srr - max(mixed, text), '+')}."
        )
    undecided = sum("undecided" in line for line in lines)
    against = sum(line.endswith("worse.") for line in lines)
    compared = sum(line.endswith(("undecided.", "better.", "worse.")) for line in lines)
    head = (
        f"Of {compared} comparisons {undecided} are undecided (the interval holds zero) and {against} come out "
        "against what is named first. A network of a ranker's size trained on a few thousand labels fits them all; "
        "where listwise, pairwise or pointwise lie below SRR above, that is why SRR is distilled.\n\n"
    )
    return head + "\n".join(lines) if lines else "Nothing was compared."


def _verdict(entry: Numbers) -> str:
    ends = entry["ci95"]["top1"]
    if ends is None or ends[0] <= 0 <= ends[1]:
        return "undecided"
    return "better" if ends[0] > 0 else "worse"


def _scorers(scorers: Numbers, column: str, head: str = "scorer") -> str:
    sources = list(dict.fromkeys(name for one in scorers.values() for name in one["sources"]))
    rows = [
        [name, *(_interval(one["sources"].get(source), column) for source in sources), _interval(one["mean"], column)]
        for name, one in scorers.items()
    ]
    return _table([head, *sources, "mean"], rows)


def _differences(differences: Numbers) -> str:
    sources = list(dict.fromkeys(name for one in differences.values() for name in one["sources"]))
    rows = [
        [
            name,
            label,
            *(_interval(one["sources"].get(source), column, "+") for source in sources),
            _interval(one["mean"], column, "+"),
        ]
        for name, one in differences.items()
        for column, label in (("top1", "top-1"), ("auc", "AUC"))
    ]
    return _table(["difference", "", *sources, "mean"], rows)


def _by_n(found: Numbers) -> str:
    keys = list(next(iter(found.values()))) if found else []
    return _table(["n", *keys], [[n, *(_found(one[key]) for key in keys)] for n, one in found.items()])


def _interval(entry: Numbers | None, column: str, sign: str = "") -> str:
    if entry is None or entry[column] is None:
        return "-"
    ends = entry["ci95"][column]
    value = _number(entry[column], sign)
    return value if ends is None else f"{value} [{_number(ends[0], sign)}, {_number(ends[1], sign)}]"


def _found(entry: Numbers) -> str:
    return _interval({"v": entry["value"], "ci95": {"v": entry.get("ci95")}}, "v")


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.3f}"


def _each(found: Sequence[float | None]) -> str:
    return " ".join(_number(one) for one in found)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def _plot(make: Callable[[Numbers], bytes], result: Numbers) -> bytes | None:
    try:
        return make(result)
    except LookupError:  # a section that is not there
        return None


def _lines(
    series: Mapping[str, Sequence[tuple[float, float | None, Sequence[float] | None]]],
    x: str,
    y: str,
    log: bool = False,
) -> bytes:
    """PNG: (x, value, interval or None) of every name."""
    figure = require("matplotlib.figure").Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, points in series.items():
        shown = [point for point in points if point[1] is not None]
        (line,) = axes.plot([p[0] for p in shown], [p[1] for p in shown], marker="o", markersize=3, label=name)
        if shown and all(p[2] is not None for p in shown):
            low, high = zip(*(p[2] for p in shown if p[2] is not None), strict=True)
            axes.fill_between([p[0] for p in shown], low, high, alpha=0.15, color=line.get_color())
    if log:
        axes.set_xscale("log", base=2)
    axes.set(xlabel=x, ylabel=y)
    axes.legend(frameon=False)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120)
    return data.getvalue()


def _sweep_plot(result: Numbers) -> bytes:
    series: dict[str, list[Any]] = {}
    for name, one in result["sweep"]["cells"].items():
        k, pooling = name.split()
        if k != "all":
            series.setdefault(f"{pooling} pooling", []).append((int(k), one["mean"]["auc"], one["mean"]["ci95"]["auc"]))
    return _lines(series, "layer", "AUC, mean over sources")


def _size_plot(result: Numbers) -> bytes:
    series: dict[str, list[Any]] = {}
    for one in result["size"]["rows"]:
        if one["lists"].isdigit():
            point = (int(one["lists"]), one["mean"]["top1"], one["mean"]["ci95"]["top1"])
            series.setdefault(one["learner"], []).append(point)
    return _lines(series, "lists to learn from", "top-1, mean over sources", log=True)


def _n_plot(found: Numbers, keys: Sequence[str]) -> bytes:
    series = {key: [(int(n), one[key]["value"], one[key].get("ci95")) for n, one in found.items()] for key in keys}
    return _lines(series, "candidates n", "unsafe rate", log=True)


PLOTS: dict[str, Callable[[Numbers], bytes]] = {
    "top1": lambda result: report.bars(result["main"]["scorers"], "top1", "top-1 safe"),
    "sweep": _sweep_plot,
    "size": _size_plot,
    "candidates": lambda result: _n_plot(result["candidates"]["n"], ("first", SRR, TFIDF, "oracle")),
    "calibration": lambda result: report.reliability(result["shortcut"]["calibration"]["all"]),
    "minichat": lambda result: _n_plot(result["minichat"]["n"], ("first", "chosen", "oracle")),
}
# Key of the numbers, title, text, plot. "main" comes twice: what it says about the goals, then its tables.
PARTS: tuple[tuple[str, str, Callable[[Numbers], str], str | None], ...] = (
    ("main", "The answer", answer, None),
    ("main", "Real lists: cross-validation", main, "top1"),
    ("split", "Train to val", split, None),
    ("one", "One ranker for all sources", one, None),
    ("sweep", "Layer and pooling", sweep, "sweep"),
    ("ablation", "Scope, encoder, objective", ablation, None),
    ("size", "Number of training lists", size, "size"),
    ("candidates", "Number of candidates", candidates, "candidates"),
    ("cross", "From one source to another", cross, None),
    ("care", "Over-refusal and fairness", care, None),
    ("shortcut", "Shortcuts and calibration", shortcut, "calibration"),
    ("minichat", "A model that answers: minichat", live, "minichat"),
    ("cost", "Cost", cost, None),
)
