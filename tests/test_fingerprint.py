# SPDX-License-Identifier: Apache-2.0
"""Which tokenizers and templates read alike, and who is told of a ranker that was trained with others."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from srr_fast import BestOfN, SafetyRanker, TextRanker, best_of_n, fingerprint, minichat
from srr_fast.cli.command import main
from srr_fast.extract import cache_name
from srr_fast.reading import READ

from .best_of_n import make_ranker
from .tiny_encoders import encoder, pair_tokenizer
from .tiny_models import CHAT_TEMPLATE, fresh, tiny, tokenizer

DATED = CHAT_TEMPLATE + '{{ strftime_now("%f") }}'


def bytewise(*, vocabulary=(), normalizer=None, digits=False, first=None, special=()):
    """A tokenizer of bytes and what the options say."""
    words = {word: i for i, word in enumerate([*vocabulary, *sorted(pre_tokenizers.ByteLevel.alphabet()), "Th"])}
    merges = [("T", "h")]
    backend = Tokenizer(models.BPE(words, merges))
    backend.normalizer = normalizer
    parts = [pre_tokenizers.Digits(individual_digits=True)] * digits
    backend.pre_tokenizer = pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    if first is not None:
        backend.post_processor = processors.TemplateProcessing(single="! $A", special_tokens=[("!", words["!"])])
    return PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=list(special))


def of(words, **changes):
    for name, value in changes.items():
        setattr(words, name, value)
    return fingerprint.of_reading(None, words)


def test_what_reads_otherwise_has_another_fingerprint():
    plain = of(bytewise())
    others = {
        of(bytewise(vocabulary=["\n\n"])),
        of(bytewise(normalizer=normalizers.Lowercase())),
        of(bytewise(normalizer=normalizers.NFC())),
        of(bytewise(normalizer=normalizers.NFKC())),
        of(bytewise(normalizer=normalizers.Replace("  ", " "))),
        of(bytewise(normalizer=normalizers.Replace("\r", ""))),
        of(bytewise(first="!")),
        of(bytewise(special=["<|im_start|>"])),
        of(bytewise(), chat_template=CHAT_TEMPLATE),
        of(bytewise(), chat_template=CHAT_TEMPLATE + " "),
        of(bytewise(), chat_template={"default": CHAT_TEMPLATE, "tools": "x"}),
    }
    assert len(others - {plain}) == 11
    assert fingerprint.of_reading(encoder("bert"), bytewise()) not in others | {plain}


def test_what_reads_alike_has_the_same():
    plain = of(bytewise(), chat_template=DATED)
    assert of(bytewise(), chat_template=DATED, padding_side="left", model_max_length=3) == plain
    padded = bytewise()
    padded.add_special_tokens({"pad_token": "[PAD]"})
    padded(["a", "b c"], padding=True, truncation=True, max_length=1)
    assert of(padded, chat_template=DATED) == plain
    assert fingerprint.of_reading(tiny("llama"), padded) == plain


def trained(words=None, template=CHAT_TEMPLATE, model=None, **options):
    ranker = make_ranker(**options)
    ranker.model_fingerprint = fingerprint.of_model(model or tiny("llama"))
    ranker.reading_fingerprint = fingerprint.of_reading(model or tiny("llama"), words or tokenizer(template))
    return ranker


@pytest.mark.parametrize("kind", [BestOfN, TextRanker])
def test_the_warning_names_what_differs(kind):
    ranker = trained()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind(tiny("llama"), tokenizer(CHAT_TEMPLATE), ranker)
        kind(tiny("llama"), None, ranker)
    known, here = ranker.reading_fingerprint, fingerprint.of_reading(None, tokenizer())
    with pytest.warns(UserWarning, match=f"other tokenizer or chat template, fingerprint {known}, here {here}") as one:
        kind(tiny("llama"), tokenizer(), ranker)
    assert "weights" not in str(one[0].message) and one[0].filename == __file__
    with pytest.warns(UserWarning, match="other weights, fingerprint") as one:
        kind(tiny("llama", seed=1), tokenizer(CHAT_TEMPLATE), ranker)
    assert "tokenizer" not in str(one[0].message)
    with pytest.warns(UserWarning, match="other weights, .* and other tokenizer or chat template, ") as both:
        kind(tiny("llama", seed=1), tokenizer(), ranker)
    assert len(both) == 1


def test_where_there_is_no_tokenizer_none_is_compared():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop = best_of_n(trained())
        fresh("llama").generate(
            torch.tensor([[30, 31]]), num_return_sequences=2, do_sample=True, max_new_tokens=2, custom_generate=loop
        )


@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_another_way_to_read_is_told_and_has_its_own_cache(monkeypatch, kind):
    model, words = {
        "causal": (tiny("llama"), tokenizer(CHAT_TEMPLATE)),
        "encoder": (encoder("bert"), pair_tokenizer("bert")),
    }[kind]
    with monkeypatch.context() as before:
        before.setitem(READ, kind, READ[kind] - 1)
        ranker, old = trained(words, model=model), cache_name(model, words)
    assert cache_name(model, words) != old
    assert fingerprint.of_model(model) == ranker.model_fingerprint
    with pytest.warns(UserWarning, match="other tokenizer or chat template, .* its scores may mean nothing here"):
        TextRanker(model, words, ranker)
    with monkeypatch.context() as other:
        name = cache_name(model, words)
        other.setitem(READ, {"causal": "encoder", "encoder": "causal"}[kind], 0)
        assert cache_name(model, words) == name


def test_a_checkpoint_keeps_it(tmp_path):
    ranker = trained()
    ranker.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["reading_fingerprint"] == ranker.reading_fingerprint
    assert SafetyRanker.from_pretrained(tmp_path).reading_fingerprint == ranker.reading_fingerprint


def test_the_commands_warn(tmp_path, capsys):
    tiny("llama").save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    trained().save_pretrained(tmp_path / "ranker")
    options = ["--model", str(tmp_path / "model"), "--ranker", str(tmp_path / "ranker")]
    (tmp_path / "answers.txt").write_text("w40\nw41 w42\n")
    given = ["--instruction", "w30", "--candidates", str(tmp_path / "answers.txt")]
    for arguments in (["rank", *options, *given], ["generate", *options, "w30", "--n", "2", "--max-new-tokens", "2"]):
        with pytest.warns(UserWarning, match="other tokenizer or chat template"):
            assert main(arguments) == 0


def test_the_bundled_ranker_knows_its_model_and_tokenizer():
    model, words, ranker = minichat.load()
    assert ranker.model_fingerprint == fingerprint.of_model(model)
    assert ranker.reading_fingerprint == fingerprint.of_reading(model, words)
