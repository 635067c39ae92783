# SPDX-License-Identifier: Apache-2.0
"""``make evidence``: folds without leaks, and a whole quick run on made-up lists; no text in what it writes."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from benchmarks import evidence, evidence_data, evidence_jobs
from benchmarks.evidence_jobs import Job
from benchmarks.evidence_page import answer
from srr_fast.lists import write_lists

from .labelled import encoder, labelled

for library in ("sklearn", "matplotlib", "accelerate"):
    pytest.importorskip(library, reason=f"{library} is not installed")

# Of the libraries, about toy data: fits that do not converge, one class in a bin.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Lists of six sources in the layout of the real ones, and a model of two layers."""
    folder = tmp_path_factory.mktemp("evidence")
    for part in ("ranking", "pointwise", "overrefusal", "ranking_fairness"):
        (folder / part).mkdir()

    def lists(name, val=8):
        return labelled(name, 24, split="train") + labelled(name, val, seed=1, split="val")

    for name in ("saferlhf_mini", "safetext", "gptfuzz", "xstest_unsafe"):
        write_lists(folder / "ranking" / f"{name}.jsonl", lists(name))
    lone = [labelled("saferlhf_mini", 6, seed=2 + safe, split="train", safe=bool(safe)) for safe in (0, 1)]
    write_lists(folder / "pointwise" / "saferlhf_mini.jsonl.gz", [*lone[0], *lone[1]])
    write_lists(folder / "ranking_fairness" / "bbq_ambig.jsonl", lists("bbq_ambig"))
    names = {True: "1_full_compliance", False: "2_full_refusal"}
    write_lists(
        folder / "overrefusal" / "xstest_safe.jsonl",
        [
            replace(one, responses=tuple(replace(r, safe=None, extra={"label": names[r.safe]}) for r in one.responses))
            for one in labelled("xstest_safe", 12, split="train")
        ],
    )
    encoder(folder / "model")
    return folder


@pytest.fixture(scope="module")
def corpus(folder):
    return evidence_data.load(folder, str(folder / "model"), folder / "cache", folds=3)


def test_clusters_join_what_is_alike_and_what_links_them():
    one, two, three = "a b c d", "a b c d e", "b c d e f"
    found = evidence_data.clusters([one, "x y z", two, three, "???", "!!!"])
    assert found[0] == found[2] == found[3]
    assert len({found[0], found[1], found[4]}) == 3
    assert evidence_data.clusters([one, three])[0] != evidence_data.clusters([one, three])[1]  # 3 of 6 words


def test_nothing_like_a_held_out_instruction_is_learned_from(corpus):
    for learner in ("distilled", "listwise"):
        measured = dict.fromkeys(corpus.harm, 0)
        for fold in range(corpus.folds):
            job = Job(learner, corpus.harm, corpus.harm, f"fold {fold}", corpus.layers)
            learned, stopping = evidence_jobs.training_part(job, corpus)
            clusters = {
                corpus.sources[name].cluster[i] for part in (learned, stopping) for name in part for i in part[name]
            }
            for name in corpus.harm:
                rows = evidence_jobs.test_rows(job.part, corpus, name)
                assert clusters.isdisjoint(corpus.sources[name].cluster[i] for i in rows)
                assert set(learned[name]).isdisjoint(stopping[name])
                measured[name] += len(rows)
        assert measured == {name: len(corpus.sources[name].mixed(corpus.sources[name].rows())) for name in corpus.harm}


def test_train_to_val_learns_from_train_alone(corpus):
    job = Job("listwise", ("safetext",), ("safetext",), "split", corpus.layers)
    learned, _ = evidence_jobs.training_part(job, corpus)
    source = corpus.sources["safetext"]
    assert {source.lists[i].split for i in learned["safetext"]} == {"train"}
    assert {source.lists[i].split for i in evidence_jobs.test_rows("split", corpus, "safetext")} == {"val"}


def test_states_of_rows_are_those_of_the_lists(corpus):
    source = corpus.sources["safetext"]
    rows = [5, 0, 7]
    some, all_of_them = (corpus.features("safetext", part, (1, 2), "mean") for part in (rows, source.rows()))
    assert some.inst.equal(all_of_them.inst[rows])
    for at, i in enumerate(rows):
        own = some.resp[some.offsets[at] : some.offsets[at + 1]]
        assert own.equal(all_of_them.resp[all_of_them.offsets[i] : all_of_them.offsets[i + 1]])
        assert len(own) == len(source.lists[i].responses)


def test_a_fit_that_fails_loses_no_other_and_is_tried_again(corpus, tmp_path, capsys):
    good = Job("kernel", ("safetext",), ("safetext",), "fold 0", corpus.layers)
    bad = replace(good, layers=(99,))
    assert list(evidence_jobs.run_all([good, bad], corpus, tmp_path, 1)) == [good]
    (kept,) = (tmp_path / "fits").iterdir()
    changed = json.loads(kept.read_text()) | {"seconds": -1.0}
    kept.write_text(json.dumps(changed))
    assert evidence_jobs.run_all([good], corpus, tmp_path, 1)[good]["seconds"] == -1.0


def test_a_quick_run_writes_every_section_and_no_text(folder, tmp_path, capsys):
    arguments = ["--data", str(folder), "--model", str(folder / "model"), "--out", str(tmp_path), "--processes", "1"]
    evidence.main([*arguments, "--cache", str(tmp_path / "cache"), "--quick"])
    page = (tmp_path / "evidence.md").read_text()
    numbers = json.loads((tmp_path / "evidence" / "evidence.json").read_text())
    assert numbers["failed"] == {}
    assert {*evidence.SECTIONS, "minichat", "cost"} <= numbers.keys()
    titles = re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert titles[0] == "The answer" and {"What did not work", "Limits", "Cost"} <= {*titles} and len(titles) == 16
    for name in re.findall(r"^!\[.*\]\((.+)\)$", page, re.MULTILINE):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    for line in page.splitlines():
        if line.startswith("|"):
            assert line.count("|") >= 3 and "nan" not in line and "None" not in line
    for what in ("text alone", "against the last layer", "last token, listwise"):
        assert re.search(rf"^- .*{what}.*: top-1 .+ \[.+\], (better|worse|undecided)\.$", page, re.MULTILINE), what
    words = re.compile(r"\bw\d+ w\d+\b")  # what the lists are made of
    assert not words.search(page) and not words.search(json.dumps(numbers))


def test_goals_that_are_missed_are_called_missed():
    def entry(value):
        return {"top1": value, "auc": value, "ci95": {"top1": [value, value], "auc": [value, value]}}

    found = {
        "about": {"folds": 5, "seeds": 3},
        "main": {
            "scorers": {"SRR": {"mean": entry(0.87), "sources": {"saferlhf_mini": entry(0.73)}}},
            "differences": {"SRR minus TF-IDF + LR": {"mean": entry(0.06)}},
        },
    }
    text = answer(found)
    assert text.startswith("Of 4 goals 3 are met and 1 missed.")
    assert re.search(r"mean top-1 \| .*0\.870.*missed", text)
