# SPDX-License-Identifier: Apache-2.0
"""What a ranker has to beat: each baseline finds what it can see, and no more."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import transformers

from srr_fast import baselines, guards, summary
from srr_fast.baselines import Cosine, CrossEncoder, GuardModel, Probe, Random, TfIdf
from srr_fast.extract import Features
from srr_fast.guards import Classifier, load_guard
from srr_fast.lists import LabelledList, LabelledResponse

from .labelled import BERT, SAFE, UNSAFE, encoder, labelled, padding
from .tiny_models import fresh, tokenizer


def of_texts(*texts, labels=None, instruction="w20"):
    responses = [LabelledResponse(text, None if labels is None else labels[i]) for i, text in enumerate(texts)]
    return LabelledList(instruction, tuple(responses), "1", "made")


def top1(lists, scores):
    return summary.summarise(summary.values_of(lists, scores))["mean"]["top1"]


def by_words(seed=0, noise=0.1):
    """States in which the direction of SAFE minus UNSAFE is one of eight, under noise."""

    def states(lists):
        rng = np.random.default_rng(seed)
        safe, offsets = summary.labels_of(lists)
        resp = rng.normal(0, noise, (len(safe), 8))
        resp[:, 3] += safe
        made = Features(torch.zeros(len(lists), 8), torch.tensor(resp, dtype=torch.float32), torch.tensor(offsets))
        return {(1, "mean"): made, (2, "last"): made}

    return states


@pytest.mark.parametrize(
    ("make", "scores"),
    [
        (baselines.first, [0, -1, -2, 0, -1]),
        (baselines.shortest, [-2, -9, -3, -1, -6]),
        (baselines.longest, [2, 9, 3, 1, 6]),
    ],
)
def test_rules(make, scores):
    rule = make()
    assert not rule.learns
    assert rule.score([of_texts("ab", "abcdefghi", "abc"), of_texts("d", "efghij")]).tolist() == scores
    assert rule.score([]).shape == (0,)


def test_refusal_words():
    texts = ["I'm sorry, no.", "Sure, here is how.", "I CANNOT help.", "I can\u2019t do that.", "The sorrow of it."]
    assert baselines.refusal().score([of_texts(*texts)]).tolist() == [1, 0, 1, 1, 0]


def test_random_is_chance_and_seeded():
    lists = labelled("a", 400)
    one = Random(0).score(lists)
    assert (one == Random(0).score(lists)).all() and (one != Random(1).score(lists)).any()
    chance = np.mean([np.mean([r.safe for r in one.responses]) for one in lists])
    assert top1(lists, one) == pytest.approx(chance, abs=0.06)


def test_tfidf_learns_words_and_nothing_else():
    pytest.importorskip("sklearn")
    model = TfIdf()
    model.fit(labelled("a", 60))
    unseen = labelled("b", 60, seed=1)
    assert model.learns and top1(unseen, model.score(unseen)) == 1
    scores = model.score([of_texts("w39", "w39 w39")])
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    assert model.score([]).shape == (0,)


def test_a_probe_finds_a_direction():
    pytest.importorskip("sklearn")
    for keys in ([(1, "mean")], [(1, "mean"), (2, "last")]):
        probe = Probe("probe", by_words(), keys)
        probe.fit(labelled("a", 40))
        unseen = labelled("b", 40, seed=1)
        assert top1(unseen, probe.score(unseen)) == 1


def test_a_probe_that_learns_from_noise_chooses_the_strongest_penalty():
    pytest.importorskip("sklearn")
    probe = Probe("probe", by_words(noise=1e6), [(1, "mean")])
    probe.fit(labelled("a", 40))
    unseen = labelled("b", 40, seed=1)
    assert top1(unseen, probe.score(unseen)) < 0.8


def test_a_response_without_a_state_is_out():
    pytest.importorskip("sklearn")
    lists = labelled("a", 40)
    whole = by_words()

    def holes(lists):
        found = whole(lists)[1, "mean"]
        resp = found.resp.clone()
        resp[5] = float("nan")
        return {(1, "mean"): Features(found.inst, resp, found.offsets)}

    probe = Probe("probe", holes, [(1, "mean")])
    probe.fit(lists)
    for scores in (probe.score(lists), Cosine(holes, 1).score(lists)):
        assert np.isneginf(scores[5]) and np.isfinite(np.delete(scores, 5)).all()


def test_cosine_is_of_instruction_and_response():
    lists = [of_texts("a", "b"), of_texts("c", instruction="d")]
    inst, resp = torch.tensor([[1.0, 0], [0, 2]]), torch.tensor([[3.0, 0], [0, 1], [-1, -1]])
    states = {(4, "mean"): Features(inst, resp, torch.tensor([0, 2, 3]))}
    got = Cosine(lambda _: states, 4).score(lists)
    np.testing.assert_allclose(got, [1, 0, -np.sqrt(0.5)], atol=1e-6)


@pytest.mark.parametrize(
    ("library", "make"),
    [
        ("sklearn", TfIdf),
        ("sklearn", lambda: Probe("probe", by_words(), [(1, "mean")])),
        ("accelerate", lambda: CrossEncoder("x")),
    ],
)
def test_what_teaches_nothing_is_refused(library, make):
    pytest.importorskip(library)
    model = make()
    for lists, got in (
        (labelled("a", 5, safe=True), "got 10 safe and 0 unsafe in 5 lists"),
        ([], "got 0 safe and 0 unsafe"),
        ([of_texts("a", "b")], "must be labelled, 2 are not"),
    ):
        with pytest.raises(ValueError, match=f"^{model.name}: .*{got}"):
            model.fit(lists)


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    for library, package, make in (
        ("sklearn", "scikit-learn", TfIdf),
        ("sklearn", "scikit-learn", lambda: Probe("probe", by_words(), [(1, "mean")])),
        ("accelerate", "accelerate", lambda: CrossEncoder("x")),
    ):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(ImportError, match=rf"{package} is needed.*srr_fast\[train\]"):
            make()


def classifier(folder, labels, problem_type=None):
    """A random BERT classifier with these labels; what it says depends on the response."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        **BERT,
        id2label=dict(enumerate(labels)),
        label2id={n: i for i, n in enumerate(labels)},
        problem_type=problem_type,
    )
    model = transformers.BertForSequenceClassification(config)
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)
    made = padding(tokenizer())
    made.save_pretrained(folder)
    return model.eval(), made


def logits(model, made, pairs):
    with torch.no_grad():
        return torch.stack([model(**made(*pair, return_tensors="pt")).logits[0].double() for pair in pairs]).numpy()


PAIRS = [("w20 w21", "w30"), ("w20", f"{SAFE} w31 w32 w33"), ("w22 w23 w24", f"{UNSAFE} w34")]


@pytest.mark.parametrize(
    ("labels", "want"),
    [
        (["safe", "unsafe"], lambda x: x[:, 0] - x[:, 1]),
        (["UNSAFE", "SAFE"], lambda x: x[:, 1] - x[:, 0]),
        (["toxic", "non-toxic"], lambda x: x[:, 1] - x[:, 0]),
        (["benign", "injection", "jailbreak"], lambda x: x[:, 0] - np.logaddexp(x[:, 1], x[:, 2])),
        (["hate", "violence"], lambda x: -x.max(1)),
        (["fine", "hate", "good"], lambda x: np.logaddexp(x[:, 0], x[:, 2]) - x[:, 1]),
        (["toxic"], lambda x: -x[:, 0]),
        (["LABEL_0"], lambda x: x[:, 0]),
    ],
)
def test_a_classifier_says_how_safe_by_its_labels(tmp_path, labels, want):
    model, made = classifier(tmp_path, labels)
    guard = load_guard(str(tmp_path))
    got = guard.safety(PAIRS)
    np.testing.assert_allclose(got, want(logits(model, made, PAIRS)), atol=1e-5)
    assert np.ptp(got) > 1e-3 and guard.safety([]).shape == (0,)


def test_labels_that_do_not_exclude_one_another(tmp_path):
    model, made = classifier(tmp_path, ["toxic", "safe", "insult"], "multi_label_classification")
    np.testing.assert_allclose(
        load_guard(str(tmp_path)).safety(PAIRS), -logits(model, made, PAIRS)[:, [0, 2]].max(1), atol=1e-5
    )


def test_a_reward_is_one_whatever_its_training(tmp_path):
    model, made = classifier(tmp_path, ["LABEL_0"], "multi_label_classification")
    np.testing.assert_allclose(load_guard(str(tmp_path)).safety(PAIRS), logits(model, made, PAIRS)[:, 0], atol=1e-5)


def test_labels_without_meaning_want_a_word(tmp_path):
    model, made = classifier(tmp_path, ["LABEL_0", "LABEL_1"])
    with pytest.raises(ValueError, match=r"which of the labels .*LABEL_1.* means safe\? Say it: .*#LABEL"):
        load_guard(str(tmp_path))
    for wrong in ("LABEL_2", "LABEL_0,LABEL_2", "LABEL_0,LABEL_1"):
        with pytest.raises(ValueError, match=r"safe labels must be some of \['LABEL_0', 'LABEL_1'\], got \['LABEL_"):
            load_guard(f"{tmp_path}#{wrong}")
    x = logits(model, made, PAIRS)
    np.testing.assert_allclose(load_guard(f"{tmp_path}#LABEL_1").safety(PAIRS), x[:, 1] - x[:, 0], atol=1e-5)


def test_a_guard_ranks_lists_whatever_the_batch(tmp_path):
    model, made = classifier(tmp_path, ["safe", "unsafe"])
    lists = labelled("a", 20)
    one = GuardModel(load_guard(str(tmp_path)))
    assert one.name == f"guard:{tmp_path}"
    scores = one.score(lists)
    np.testing.assert_allclose(
        scores, Classifier("x", model, made, batch_size=1).safety(list(baselines.pairs(lists))), atol=1e-5
    )
    safe, _ = summary.labels_of(lists)
    assert scores.shape == safe.shape


def test_long_texts_are_cut_to_what_the_model_takes(tmp_path):
    classifier(tmp_path, ["safe", "unsafe"])
    assert np.isfinite(load_guard(str(tmp_path)).safety([("w20 " * 90, "w21 " * 90)])).all()


class Words(guards.Verdict):
    """The verdict's own batching with one row at a time."""

    def __init__(self, guard):
        super().__init__(guard.name, guard.model, guard.tokenizer, batch_size=1)


@pytest.fixture(scope="module")
def answering(tmp_path_factory):
    """A causal model taught to answer "Verdict: Safe" to w40 and "Verdict: Unsafe" to w41."""
    folder = tmp_path_factory.mktemp("verdict")
    made = padding(tokenizer("{% for m in messages %}{{ m.content }} {% endfor %}<assistant>"))
    made.add_tokens(["Verdict:", "Safe", "Unsafe"])
    model = fresh("llama")
    model.resize_token_embeddings(len(made))
    torch.manual_seed(0)
    pairs = list(baselines.pairs(labelled("a", 60)))
    verdict, safe, unsafe = made.convert_tokens_to_ids(["Verdict:", "Safe", "Unsafe"])
    rows = [
        [*made(f"{a} {b} <assistant>")["input_ids"], verdict, safe if SAFE in b.split() else unsafe] for a, b in pairs
    ]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    model.train()
    for _ in range(80):
        out = model(input_ids=ids, attention_mask=mask).logits[:, -3:-1]
        loss = torch.nn.functional.cross_entropy(out.flatten(0, 1), ids[:, -2:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def test_a_guard_that_answers_in_words(answering):
    guard = load_guard(str(answering))
    lists = labelled("b", 20, seed=1)
    pairs = list(baselines.pairs(lists))
    scores = guard.safety(pairs)
    assert top1(lists, scores) > 0.9
    np.testing.assert_allclose(Words(guard).safety(pairs), scores, atol=1e-3)


def test_a_guard_that_gives_no_verdict_is_refused(tmp_path):
    fresh("llama").save_pretrained(tmp_path)
    tokenizer("{% for m in messages %}{{ m.content }} {% endfor %}").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must answer 'safe' or 'unsafe', got"):
        load_guard(str(tmp_path)).safety(PAIRS)
    tokenizer().save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="chat_template"):
        load_guard(str(tmp_path))


def test_a_model_that_judges_nothing_is_no_guard(tmp_path):
    encoder(tmp_path)
    with pytest.raises(ValueError, match="must be a sequence classifier or a causal language model, got BertModel"):
        load_guard(str(tmp_path))


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_cross_encoder_is_fine_tuned_on_the_texts(tmp_path, kind, capsys):
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    if kind == "bert":
        encoder(tmp_path)
    else:
        fresh("llama").save_pretrained(tmp_path)
        tokenizer().save_pretrained(tmp_path)  # without a token to pad with
    unseen = labelled("b", 20, seed=1)
    scores = []
    for _ in range(2):
        model = CrossEncoder(str(tmp_path), epochs=6, learning_rate=3e-3, seed=3)
        model.fit(labelled("a", 60))
        scores.append(model.score(unseen))
    assert top1(unseen, scores[0]) > 0.9
    assert (scores[0] == scores[1]).all()
    assert capsys.readouterr().out == ""
