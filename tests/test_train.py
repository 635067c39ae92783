# SPDX-License-Identifier: Apache-2.0
"""Training: losses, the teacher, what is folded into the projection, and ``srr-fast train`` from files to a folder."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from srr_fast import RankerConfig, SafetyRanker, fingerprint
from srr_fast.backbone import load_backbone
from srr_fast.cli.command import main
from srr_fast.examples import Examples, Standardisation
from srr_fast.extract import extract
from srr_fast.lists import LabelledList, LabelledResponse, write_lists
from srr_fast.lists import labelled as of_split
from srr_fast.metrics import list_metrics
from srr_fast.teacher import KernelTeacher
from srr_fast.train import (
    OBJECTIVES,
    TrainingOptions,
    _Drawn,
    _Lists,
    fit_calibration,
    listwise_kl,
    pairwise_logistic,
    train,
)

from .labelled import encoder, labelled
from .tiny_models import CHAT_TEMPLATE, tiny, tokenizer

pytest.importorskip("accelerate", reason="accelerate is not installed")

D = 24
ROOT = Path(__file__).parents[1]


def examples(B, seed=0):
    """Lists of 2 to 6 whose kind is a direction of the state, far from the origin; lists of one kind among them."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2, 7, (B,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    safe = torch.rand(int(offsets[-1]), generator=generator) < 0.5
    safe[offsets[:-1]], safe[offsets[:-1] + 1] = True, False
    safe[: int(offsets[2])] = True  # two lists without an unsafe response
    resp = torch.randn(len(safe), D, generator=generator) + 7
    resp[:, 3] += 2.5 * (2 * safe.float() - 1)
    return Examples(torch.randn(B, D, generator=generator) + 7, resp * 3, offsets, safe)


def nothing():
    return examples(3).take(torch.arange(0))


def top1(ranker, part):
    with torch.no_grad():
        scores = ranker.score(part.inst, part.resp, part.offsets).scores
    return list_metrics(scores.numpy(), part.safe.numpy(), part.offsets.numpy()).top1.mean()


@pytest.fixture
def scored():
    part = examples(5).take(torch.arange(2, 5))
    return torch.rand(len(part.safe), generator=torch.Generator().manual_seed(1)), part.offsets, part.safe


def test_listwise_kl_is_the_papers(scored):
    s, offsets, safe = scored
    losses = []
    for low, high in pairwise(offsets.tolist()):
        p = torch.softmax(s[low:high].double() / 0.1, 0)
        target = safe[low:high].double() / safe[low:high].sum()
        losses.append((target * (target / p).log())[safe[low:high]].sum())
    assert listwise_kl(s, offsets, safe, 0.1).item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_pairwise_logistic_is_over_the_pairs_of_a_list(scored):
    s, offsets, safe = scored
    losses = []
    for low, high in pairwise(offsets.tolist()):
        own, kind = s[low:high].double() / 0.1, safe[low:high]
        losses.append(torch.stack([(1 + (u - v).exp()).log() for v in own[kind] for u in own[~kind]]).mean())
    got = pairwise_logistic(s, offsets, safe, 0.1).item()
    assert got == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_losses_have_finite_gradients_where_lists_differ_in_length(scored):
    s, offsets, safe = scored
    assert len(set(offsets.diff().tolist())) > 1
    for loss in (listwise_kl, pairwise_logistic):
        x = s.clone().requires_grad_()
        loss(x, offsets, safe, 0.1).backward()
        assert x.grad.isfinite().all() and (x.grad != 0).all()


@pytest.mark.parametrize("components", [None, 5])
def test_standardisation_becomes_part_of_the_projection(components):
    part = examples(30)
    standardise = Standardisation.of(part.resp, components)
    narrow = standardise(part.resp)
    assert narrow.shape == (len(part.resp), components or D)
    assert narrow.var(0, correction=0).mean().item() == pytest.approx(1, rel=1e-3)
    weight, bias = torch.randn(8, narrow.shape[1]), torch.randn(8)
    W, b = standardise.folded(weight, bias)
    torch.testing.assert_close(part.resp @ W.T + b, narrow @ weight.T + bias, rtol=1e-4, atol=1e-4)


def test_a_constant_state_is_no_division_by_zero():
    states = torch.ones(6, D)
    for components in (None, 3):
        assert Standardisation.of(states, components)(states).isfinite().all()


def test_teacher_is_kernel_ridge_regression():
    kernel_ridge = pytest.importorskip("sklearn.kernel_ridge", reason="scikit-learn is not installed").KernelRidge
    part, other = examples(40), examples(10, seed=1)
    teacher = KernelTeacher(part.resp, part.safe)
    target = 2 * part.safe.double() - 1
    X, Q = part.resp.double(), other.resp.double()
    theirs = kernel_ridge(alpha=0.3, kernel="precomputed")
    theirs.fit((-torch.cdist(X, X) / teacher.scale).exp(), target - target.mean())
    expected = theirs.predict((-torch.cdist(Q, X) / teacher.scale).exp()) + target.mean().item()
    torch.testing.assert_close(teacher(other.resp).double(), torch.tensor(expected), rtol=1e-3, atol=1e-3)


def test_teacher_of_many_examples_keeps_some(monkeypatch):
    monkeypatch.setattr("srr_fast.teacher.MOST", 50)
    monkeypatch.setattr("srr_fast.teacher.BLOCK", 20)
    part, other = examples(60), examples(20, seed=1)
    teacher = KernelTeacher(part.resp, part.safe)
    assert teacher.states.shape == (50, D)
    assert ((teacher(other.resp) > 0) == other.safe).float().mean() > 0.8


def test_a_long_list_is_cut_to_responses_of_both_kinds():
    part = examples(30)
    cut = part.take(torch.arange(30), 2, torch.Generator().manual_seed(0))
    assert cut.offsets.diff().tolist() == [2] * 30
    assert cut.mixed.tolist() == part.mixed.tolist()
    again = part.take(torch.arange(30), 2, torch.Generator().manual_seed(1))
    assert not torch.equal(cut.resp, again.resp)


@pytest.mark.parametrize("scope", ["pair", "list"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_learns_to_rank(objective, scope):
    passes = {"steps": 150} if objective == "distilled" else {"epochs": 12}
    options = TrainingOptions(objective=objective, **passes, patience=12, drawn=64)
    config = RankerConfig(D, scope=scope, proj_dim=16)
    trained = train(config, examples(120), examples(30, seed=1), options)
    assert top1(trained.ranker, examples(60, seed=2)) > 0.85
    assert trained.ranker.config == config and trained.ranker.calibration.slope > 0
    assert any("loss" in entry for entry in trained.history)


def test_a_seed_gives_the_same_bits():
    options = TrainingOptions(steps=10, drawn=32, seed=3)
    one, two = (train(RankerConfig(D, proj_dim=8), examples(40), nothing(), options).ranker for _ in range(2))
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_best_pass_is_kept_and_training_stops(monkeypatch):
    options = TrainingOptions(objective="listwise", epochs=60, patience=2, learning_rate=0.05)
    history = train(RankerConfig(D, proj_dim=16), examples(20), examples(20, seed=1), options).history
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert len(losses) < 60 and min(losses) < losses[-1]


@pytest.mark.parametrize(
    ("config", "part", "options", "words"),
    [
        (RankerConfig(D), examples(9).take(torch.arange(2)), {}, "one kind"),
        (RankerConfig(D), nothing(), {}, "got 0"),
        (RankerConfig(D + 1), examples(9), {}, "must have 25 values, got 24"),
        (RankerConfig(D, pooling="gated"), examples(9), {}, "gated"),
        (RankerConfig(D), examples(9), {"seed": -1}, "seed must be in 0 .. 4294967295, got -1"),
        (RankerConfig(D), examples(9), {"seed": 2**32}, "seed must be in 0 .. 4294967295, got 4294967296"),
    ],
)
def test_nothing_to_learn_from_is_an_error(config, part, options, words):
    with pytest.raises(ValueError, match=words):
        train(config, part, nothing(), TrainingOptions(**options))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_passes_are_counted_as_the_objective_makes_them(objective):
    mine, other = ("steps", "epochs") if objective == "distilled" else ("epochs", "steps")
    with pytest.raises(ValueError, match=f"train: objective {objective} takes {mine}, not {other}, got {other}=7"):
        TrainingOptions(objective=objective, **{other: 7})
    data = _Drawn if objective == "distilled" else _Lists
    for given, passes in (({}, 1000 if objective == "distilled" else 30), ({mine: 7}, 7)):
        assert list(data(examples(9), TrainingOptions(objective, **given)).passes.values()) == [passes]


def test_only_lists_of_one_kind_serve_the_objectives_without_lists():
    part = examples(9)
    apart = part._replace(offsets=torch.arange(len(part.safe) + 1), inst=part.inst[torch.zeros(len(part.safe)).long()])
    for objective in ("listwise", "pairwise"):
        with pytest.raises(ValueError, match="a safe and an unsafe"):
            train(RankerConfig(D), apart, nothing(), TrainingOptions(objective=objective))
    trained = train(RankerConfig(D, proj_dim=8), apart, nothing(), TrainingOptions(objective="pointwise", epochs=15))
    assert isinstance(trained.ranker, SafetyRanker)


def test_calibration_recovers_a_logistic_curve():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(20000, generator=generator) * 2 - 1
    safe = torch.rand(20000, generator=generator) < torch.sigmoid(3 * scores + 0.5)
    assert fit_calibration(scores, safe) == pytest.approx((3, 0.5), abs=0.15)
    with pytest.warns(UserWarning, match="no safer"):
        assert fit_calibration(-scores, safe) is None


def test_examples_leave_out_what_has_no_label_or_no_token(tmp_path):
    lists = labelled("a", 6, split="train")
    lists[0] = LabelledList("w1", (LabelledResponse("w2", None), LabelledResponse("w3", True)), "x", "a", "train")
    with pytest.warns(UserWarning, match="left out 1 responses of split train"):
        rows = of_split("train", lists, "train")
    assert [len(row.responses) for row in rows] == [1, *(len(row.responses) for row in lists[1:])]
    assert of_split("train", lists, "val") == []
    found = extract(tiny("llama"), tokenizer(CHAT_TEMPLATE), rows, layers=[1, 2], poolings=["mean"])
    features = [found[1, "mean"], found[2, "mean"]]
    features[0].resp[2] = float("nan")
    part = Examples.of(rows, features)
    assert part.offsets.tolist()[:3] == [0, 1, 1 + len(rows[1].responses) - 1]
    assert part.resp.shape == (len(features[0].resp) - 1, 2 * features[0].resp.shape[1])
    assert part.safe.tolist() == [r.safe for i, r in enumerate(r for row in rows for r in row.responses) if i != 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A causal model, an encoder, and lists whose unsafe responses hold one word."""
    folder = tmp_path_factory.mktemp("train")
    tiny("llama").save_pretrained(folder / "llama")
    tokenizer(CHAT_TEMPLATE).save_pretrained(folder / "llama")
    encoder(folder / "bert")
    write_lists(folder / "a.jsonl", labelled("a", 80, split="train") + labelled("a", 30, seed=1, split="val"))
    write_lists(folder / "b.jsonl.gz", labelled("b", 20, split="train"))
    write_lists(folder / "safe.jsonl", labelled("safe", 20, split="train", safe=True))
    return folder


@pytest.fixture
def command(folder, tmp_path, capsys):
    def run(*arguments, model="llama", files=("a.jsonl", "b.jsonl.gz"), status=0):
        pytest.importorskip("matplotlib", reason="matplotlib is not installed")
        data = [str(folder / file) for file in files]
        chosen = ["train", "--model", str(folder / model), "--data", *data, "--out", str(tmp_path / "out")]
        try:
            got = main([*chosen, *([] if "--objective" in arguments else ["--steps", "60"]), *map(str, arguments)])
        except SystemExit as stop:
            got = stop.code
        out, err = capsys.readouterr()
        assert got == status, err
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
        return err if status else out

    return run


@pytest.mark.parametrize("model", ["llama", "bert"])
def test_the_command_writes_a_ranker_that_serves(command, folder, tmp_path, model):
    out = command(model=model)
    assert "## The ranker" in out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"config.json", "model.safetensors", "README.md", "metrics.json", "tables.md", "curves.png"}
    ranker = SafetyRanker.from_pretrained(tmp_path / "out")
    backbone = load_backbone(folder / model)
    assert ranker.model_fingerprint == fingerprint.of_model(backbone[0])
    assert ranker.reading_fingerprint == fingerprint.of_reading(*backbone)
    assert ranker.metrics["lists trained on"] == 100 and ranker.metrics["sources"] == "a, b"
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert ranker.metrics["validation top1"] == written["mean"]["top1"] > 0.6
    evaluate = ["eval", "--ranker", str(tmp_path / "out"), "--data", str(folder / "a.jsonl"), "--split", "val"]
    main([*evaluate, "--baselines", "none", "--out", str(tmp_path / "again")])
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert again["mean"] == written["mean"]


def test_options_reach_the_ranker(command, tmp_path):
    shape = ("--layers", 0.5, "--pooling", "last", "--scope", "list", "--proj-dim", 8)
    command(*shape, "--objective", "listwise", "--epochs", 2)
    config = SafetyRanker.from_pretrained(tmp_path / "out").config
    assert (config.layer, config.pooling, config.scope, config.proj_dim) == (0.5, "last", "list", 8)


def test_without_validation_lists_it_says_so(command, tmp_path):
    with pytest.warns(UserWarning, match="no list of split val"):
        command(files=("b.jsonl.gz",))
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert "validation top1" not in SafetyRanker.from_pretrained(tmp_path / "out").metrics


def test_faults_leave_nothing_behind(command, folder, tmp_path):
    assert "one kind" in command(files=("safe.jsonl",), status=2)
    assert "objective" in command("--objective", "magic", status=2)
    assert "epochs must be at least 1, got 0" in command("--objective", "listwise", "--epochs", 0, status=2)
    assert "steps must be at least 1, got -3" in command("--steps", -3, status=2)
    assert "listwise takes epochs, not steps" in command("--objective", "listwise", "--steps", 9, status=2)
    assert "distilled takes steps, not epochs" in command("--epochs", 9, status=2)
    assert "layer must be in 1" in command("--layers", 99, status=2)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    assert "not an empty folder" in command(status=2)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("kind", ["folder", "link", "here", "mount", "hidden mount"])
def test_a_folder_that_is_there_is_written_to(command, folder, tmp_path, monkeypatch, kind):
    def move(source, to):
        seen.append({path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")})
        if kind == "hidden mount" and Path(to) == tmp_path / "out":
            raise OSError(errno.EBUSY, "busy", str(to))
        rename(source, to)

    seen, rename = [], os.replace
    monkeypatch.setattr(os, "replace", move)
    if kind == "mount":
        monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "out")
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real") if kind == "link" else (tmp_path / "real").rename(tmp_path / "out")
    (tmp_path / "out" / f".{'0' * 32}").mkdir()  # as of a run that was killed
    (tmp_path / "out").chmod(0o751)
    before = (tmp_path / "out").stat().st_ino
    if kind == "here":
        monkeypatch.chdir(tmp_path / "out")
    command(*(["--out", "."] if kind == "here" else []))
    found = (tmp_path / "out").stat()
    assert found.st_mode & 0o777 == 0o751
    if kind == "folder":  # empty until it is whole
        assert not any(seen)
    else:
        assert found.st_ino == before and not any("config.json" in names for names in seen)
    assert {"config.json", "curves.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    SafetyRanker.from_pretrained(tmp_path / "out")


KILLED = """
import os, signal, sys
from pathlib import Path
from srr_fast import shard_store, train, extract
from srr_fast.cli.command import main
extract.SHARD_TOKENS = 256
left = int(sys.argv[2])
owner, name = {
    "states": (shard_store.ShardStore, "write"), "steps": (train._Drawn, "__call__"), "folder": (os, "replace")
}[sys.argv[1]]
whole = getattr(owner, name)
def spied(*args):
    global left
    if name != "replace" or args[1] == Path(sys.argv[-1]):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return whole(*args)
setattr(owner, name, spied)
main(sys.argv[3:])
"""


@pytest.mark.slow
def test_a_killed_training_run_again_makes_the_same_folder(folder, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")

    def run(name, where="folder", left=1):
        """A process that trains, and dies before the numbered shard, step or the last move if it comes to that."""
        out = tmp_path / name / "out"
        out.parent.mkdir(exist_ok=True)
        arguments = ["train", "--model", folder / "bert", "--data", folder / "a.jsonl", "--steps", 30]
        arguments += ["--cache", tmp_path / name / "cache", "--out", out]
        done = subprocess.run(
            [sys.executable, "-c", KILLED, where, *map(str, (left, *arguments))],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        states = {path.name: path.read_bytes() for path in (tmp_path / name / "cache").rglob("*.safetensors")}
        return done.returncode, states, {path.name: path.read_bytes() for path in out.glob("*")}

    status, states, files = run("whole")
    assert status == 0 and len(states) > 2 and len(files) > 4
    for where, left in (("states", 2), ("steps", 20), ("folder", 0)):
        status, kept, nothing_yet = run("killed", where, left)
        assert (status, nothing_yet) == (-signal.SIGKILL, {})
        assert kept.items() <= states.items() and (len(kept) == 2 if where == "states" else kept == states)
    assert run("killed") == (0, states, files)
