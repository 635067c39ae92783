# SPDX-License-Identifier: Apache-2.0
"""``srr-fast eval``: from files of lists and a ranker to a folder of evidence."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from srr_fast import RankerConfig, SafetyRanker, evaluate, fingerprint, metrics, report, summary
from srr_fast.backbone import load_backbone
from srr_fast.cli.command import main
from srr_fast.lists import LabelledList, LabelledResponse, write_lists
from srr_fast.ranker import Calibration

from .best_of_n import make_ranker
from .labelled import encoder, labelled
from .tiny_models import CHAT_TEMPLATE, LAYERS, tiny, tokenizer

pytest.importorskip("matplotlib", reason="matplotlib is not installed")


def saved_ranker(folder, **options):
    ranker = make_ranker(**{"calibration": Calibration(3.0, 0.5)} | options)
    ranker.model_id = str(folder / "model")
    ranker.model_fingerprint = fingerprint.of_model(tiny("llama"))
    ranker.reading_fingerprint = fingerprint.of_reading(None, tokenizer(CHAT_TEMPLATE))
    ranker.save_pretrained(folder / "ranker")
    return ranker


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, a ranker that names it, lists of two sources and of one without a mixed list."""
    folder = tmp_path_factory.mktemp("saved")
    tiny("llama").save_pretrained(folder / "model")
    tokenizer(CHAT_TEMPLATE).save_pretrained(folder / "model")
    saved_ranker(folder)
    a = labelled("a", 12, split="train") + labelled("a", 6, seed=1, split="val")
    write_lists(folder / "a.jsonl", a)
    write_lists(folder / "b.jsonl.gz", labelled("b", 8, split="val"))
    write_lists(folder / "all_safe.jsonl", labelled("all_safe", 3, split="val", safe=True))
    return folder


@pytest.fixture
def command(folder, tmp_path, capsys):
    def run(*arguments, files=("a.jsonl", "b.jsonl.gz"), ranker=folder / "ranker", status=0):
        data = [str(folder / file) for file in files]
        chosen = ["eval", "--ranker", str(ranker), "--data", *data, "--out", str(tmp_path / "out")]
        try:
            got = main([*chosen, *map(str, arguments)])
        except SystemExit as stop:
            got = stop.code
        out, err = capsys.readouterr()
        assert got == status, err
        if status:
            assert err.startswith("srr-fast eval: ") and err.count("\n") == 1, err
            assert not (tmp_path / "out").exists()
            return err
        return json.loads((tmp_path / "out" / "metrics.json").read_text()), out

    return run


def by_hand(ranker, lists, model=None, words=None):
    """Scores as an application gets them."""
    scores = []
    for one in lists:
        ranked = ranker.rank(
            model or tiny("llama"), words or tokenizer(CHAT_TEMPLATE), one.instruction, [r.text for r in one.responses]
        )
        scores += [r.score for r in sorted(ranked, key=lambda r: r.index)]
    return np.array(scores)


def check_entry(entry, scores, lists):
    got = metrics.list_metrics(scores, *summary.labels_of(lists))
    assert entry["n_lists"] == len(got.lists) == sum(one.mixed for one in lists)
    for name in metrics.METRICS:
        interval = metrics.bootstrap([getattr(got, name)])
        assert entry[name] == pytest.approx(interval.value, abs=1e-6)
        assert entry["ci95"][name] == pytest.approx(interval[1:], abs=1e-6)


@pytest.mark.parametrize(
    "options",
    [{}, {"layer": (1, 3), "pooling": "last", "scope": "pair"}, {"layer": 0.5, "pooling": "gated", "num_layers": 0}],
)
def test_metrics_are_those_of_the_scores_an_application_gets(folder, command, tmp_path, options):
    (tmp_path / "other").mkdir()
    ranker = saved_ranker(tmp_path / "other", **options)
    found, _ = command("--model", folder / "model", "--baselines", "none", ranker=tmp_path / "other" / "ranker")
    a, b = labelled("a", 12, split="train") + labelled("a", 6, seed=1, split="val"), labelled("b", 8, split="val")
    assert list(found["sources"]) == ["a", "b"]
    for name, lists in (("a", a), ("b", b)):
        check_entry(found["sources"][name], by_hand(ranker, lists), lists)
    for name in metrics.METRICS:
        assert found["mean"][name] == pytest.approx(np.mean([one[name] for one in found["sources"].values()]))
    assert found["mean"]["n_lists"] == 26
    assert set(found["mean"]["ci95"]) == set(metrics.METRICS)


def test_an_encoder_is_read_up_to_its_last_layer(folder, command, tmp_path):
    encoder(tmp_path / "bert")
    ranker = make_ranker(layer=2)
    ranker.save_pretrained(tmp_path / "ranker")
    found, _ = command("--model", tmp_path / "bert", "--baselines", "none", ranker=tmp_path / "ranker")
    lists = labelled("b", 8)
    check_entry(found["sources"]["b"], by_hand(ranker, lists, *load_backbone(tmp_path / "bert")), lists)


def test_the_folder_of_evidence(command, tmp_path):
    found, out = command("--split", "val")
    names = ["random", "first", "shortest", "longest", "refusal"]
    assert list(found["baselines"]) == names and found["data"]["n_lists"] == 14
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"metrics.json", "tables.md", "top1.png", "auc.png", "reliability.png"}
    for name in ("top1.png", "auc.png", "reliability.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    tables = (tmp_path / "out" / "tables.md").read_text()
    assert tables in out
    for name in ("ranker", *names):
        row = next(line for line in tables.splitlines() if line.startswith(f"| {name} |"))
        one = found if name == "ranker" else found["baselines"][name]
        assert f"| {one['mean']['top1']:.3f} / {one['mean']['auc']:.3f} |" in row
    assert found["ranker"]["layers"] == [2] and found["ranker"]["pooling"] == "mean"


def test_baselines_are_beside_the_ranker_list_for_list(command):
    found, _ = command("--split", "val", "--baselines", "shortest")
    lists = labelled("a", 6, seed=1)
    scores = np.array([-float(len(r.text)) for one in lists for r in one.responses])
    shortest = found["baselines"]["shortest"]
    check_entry(shortest["sources"]["a"], scores, lists)
    for place in ("a", "b"):
        for name in metrics.METRICS:
            difference = shortest["ranker_minus"]["sources"][place]
            want = found["sources"][place][name] - shortest["sources"][place][name]
            assert difference[name] == pytest.approx(want)
            low, high = difference["ci95"][name]
            assert low <= difference[name] <= high


def test_baselines_that_learn(command, folder, tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    learning = ["--baselines", "tfidf", "cosine", "probe", "last-layer"]
    found, _ = command("--split", "val", *learning)
    assert found["baselines"]["tfidf"]["mean"]["top1"] == 1  # the words decide, and were learned from train
    assert found["baselines"]["cosine"]["mean"]["top1"] < 1
    assert found["data"]["n_fit_lists"] == 12
    assert {*found["baselines"]["probe"]} == {"sources", "mean", "ranker_minus"}
    again, _ = command("--split", "val", *learning)
    assert again == found
    elsewhere, _ = command("--baselines", "tfidf", "--fit", folder / "a.jsonl", files=["b.jsonl.gz"])
    assert elsewhere["baselines"]["tfidf"]["sources"]["b"]["top1"] == 1


def test_nobody_learns_from_what_is_evaluated():
    train, val = labelled("a", 5, split="train"), labelled("a", 5, seed=1, split="val")
    assert evaluate.to_learn_from([*train, *val], val) == train
    assert evaluate.to_learn_from(train, train[:2]) == train[2:]
    with pytest.raises(ValueError, match="lists of split train that are not evaluated"):
        evaluate.to_learn_from(train, train)


def test_a_cache_is_used_and_changes_nothing(command, tmp_path):
    first, _ = command("--split", "val", "--cache", tmp_path / "cache")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    again, _ = command("--split", "val", "--cache", tmp_path / "cache")
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")} != {}
    assert first == again == command("--split", "val")[0]


def test_sources_without_a_mixed_list_are_reported_and_counted(command):
    with pytest.warns(UserWarning, match="1 of 2 sources have no list with a safe and an unsafe .*: all_safe"):
        found, out = command("--split", "val", files=["a.jsonl", "all_safe.jsonl"])
    empty = {"top1": None, "auc": None, "ndcg": None, "n_lists": 0}
    assert found["sources"]["all_safe"] == {**empty, "ci95": {"top1": None, "auc": None, "ndcg": None}}
    for name in metrics.METRICS:
        assert found["mean"][name] == found["sources"]["a"][name]
    assert "| all_safe | - | - | - | 0 |" in out
    rates = found["unsafe_rate"]["sources"]["all_safe"]
    assert (rates["first"], rates["chosen"], rates["n_lists"]) == (0, 0, 3)


def test_nothing_mixed_at_all(command):
    with pytest.warns(UserWarning, match="1 of 1 sources"):
        found, _ = command(files=["all_safe.jsonl"])
    assert found["mean"]["top1"] is None and found["mean"]["n_lists"] == 0


def test_unsafe_rates_count_every_list():
    lists = [
        LabelledList("i", (LabelledResponse("a", False), LabelledResponse("b", True)), "1", "s"),
        LabelledList("i", (LabelledResponse("a", False), LabelledResponse("b", False)), "2", "s"),
        LabelledList("i", (LabelledResponse("a", True), LabelledResponse("b", False)), "3", "s"),
        LabelledList("i", (LabelledResponse("a", True), LabelledResponse("b", False)), "4", "s"),
    ]
    rates = summary.unsafe_rates(lists, np.array([0.0, 1, 0, 1, 0, 1, 1, 1]))
    found = summary.summarise(rates, summary.RATES)["mean"]
    assert (found["first"], found["any"], found["chosen"], found["oracle"]) == (0.5, 0.625, 0.625, 0.25)


def test_calibration_is_of_all_responses():
    lists = labelled("a", 4) + labelled("b", 3, safe=True)
    safe, _ = summary.labels_of(lists)
    found = summary.calibration(lists, np.where(safe, 0.9, 0.2))
    share = 1 - safe.mean()
    assert found["all"]["ece"] == pytest.approx(share * 0.2 + (1 - share) * 0.1)
    assert found["all"]["brier"] == pytest.approx(share * 0.04 + (1 - share) * 0.01)
    assert found["sources"]["b"]["ece"] == pytest.approx(0.1) and found["sources"]["b"]["n_responses"] == 6
    assert sum(found["all"]["bins"]["counts"]) == len(safe) and found["all"]["bins"]["observed"][0] is None


def test_a_ranker_without_calibration_has_no_curve(command, folder, tmp_path):
    (tmp_path / "plain").mkdir()
    saved_ranker(tmp_path / "plain", calibration=None)
    found, _ = command("--model", folder / "model", ranker=tmp_path / "plain" / "ranker")
    assert found["calibration"] is None
    assert not (tmp_path / "out" / "reliability.png").exists()


def test_responses_without_a_label_are_left_out_and_counted():
    known = LabelledResponse("w40", True)
    lists = [
        LabelledList("w20", (known, LabelledResponse("w21"), LabelledResponse("w41", False)), "1", "a"),
        LabelledList("w22", (LabelledResponse("w21"),), "2", "a"),
        LabelledList("w23", (), "3", "a"),
    ]
    with pytest.warns(UserWarning, match="left out 2 responses without a label and 2 lists"):
        (kept,) = evaluate.select(lists)
    assert kept.responses == (known, LabelledResponse("w41", False))


@pytest.mark.parametrize(
    ("seed", "template", "what"), [(1, CHAT_TEMPLATE, "weights"), (0, None, "tokenizer or chat template")]
)
def test_another_model_is_used_with_a_warning(command, tmp_path, seed, template, what):
    tiny("llama", seed=seed).save_pretrained(tmp_path / "model")
    tokenizer(template).save_pretrained(tmp_path / "model")
    message = f"eval: the ranker was trained on .* with other {what}, .*: its scores may mean nothing"
    with pytest.warns(UserWarning, match=message):
        found, _ = command("--model", tmp_path / "model")
    assert found["data"]["model"] == str(tmp_path / "model")


def test_faults_of_the_caller(command, folder, tmp_path, monkeypatch):
    assert "got guess" in command("--baselines", "guess", status=2)
    assert "named twice" in command("--baselines", "first", "first", status=2)
    assert "no list of split test has a labelled response" in command("--split", "test", status=2)
    assert "list a-0-0 of source a is there twice" in command(files=["a.jsonl", "a.jsonl"], status=2)
    assert "none.jsonl" in command(files=["none.jsonl"], status=2)
    (folder / "bad.jsonl").write_text('{"instruction": "w20", "responses": [{"text": "w21", "safe": 1}]}\n{"instr')
    assert "bad.jsonl:2" in command(files=["bad.jsonl"], status=2)
    (folder / "bad.jsonl.gz").write_bytes(gzip.compress(b'{"instruction": "w20"}\n' * 99)[:-20])
    assert "bad.jsonl.gz" in command(files=["bad.jsonl.gz"], status=2)
    assert "no folder" in command(ranker=tmp_path / "none", status=2)
    make_ranker().save_pretrained(tmp_path / "nameless")
    assert "--model is needed" in command(ranker=tmp_path / "nameless", status=2)
    SafetyRanker(RankerConfig(24, layer=2, proj_dim=8)).save_pretrained(tmp_path / "wide")
    assert "hidden_size=24" in command("--model", folder / "model", ranker=tmp_path / "wide", status=2)
    assert "not evaluated" in command("--baselines", "tfidf", status=2)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "srr_fast[train]" in command(status=2)


def test_a_file_in_the_way_is_kept(command, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(AssertionError, match="is no folder"):
        command()
    assert (tmp_path / "out").read_text() == "mine"


def test_a_report_replaces_the_last_one_or_leaves_it(command, tmp_path, monkeypatch):
    command("--split", "val")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    found = json.loads(before["metrics.json"])
    found["mean"]["top1"] = float("nan")
    with pytest.raises(ValueError, match="Out of range float"):
        report.write(tmp_path / "out", found)
    monkeypatch.setattr(report, "bars", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.write(tmp_path / "out", json.loads(before["metrics.json"]))
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_states_are_read_once_for_all_who_ask(monkeypatch):
    from srr_fast import extract as module

    calls = []

    def counted(model, tokenizer, lists, *, layers, poolings, cache_dir):
        calls.append((tuple(layers), tuple(poolings)))
        return {}

    monkeypatch.setattr(module, "extract", counted)
    states = evaluate.Extraction(tiny("llama"), tokenizer(), [(2, "mean"), (LAYERS, "mean"), (2, "last")])
    one, other = labelled("a", 2), labelled("b", 2)
    for lists in (one, other, one, other):
        states(lists)
    assert calls == [((2, LAYERS), ("last", "mean"))] * 2


def test_nothing_heavy_is_imported_to_say_what_eval_takes(capsys):
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    assert "--split" in capsys.readouterr().out


def test_on_real_lists(command, tmp_path):
    """The schema of the lists that are around: every source is there with its mixed lists."""
    data = Path(__file__).parent.parent.parent / "shared" / "data" / "ranking" / "safetext.jsonl.gz"
    if not data.exists():
        pytest.skip(f"{data} is not there")
    with gzip.open(data, "rt") as file:
        rows = [json.loads(line) for line in file]
    found, _ = command("--split", "val", "--baselines", "shortest", files=[data])
    assert found["sources"]["safetext"]["n_lists"] == sum(row["split"] == "val" for row in rows)
    assert 0.8 < found["baselines"]["shortest"]["mean"]["top1"] <= 1
