# SPDX-License-Identifier: Apache-2.0
"""The cache of extracted states: nothing is read twice, and it survives whatever happens to its files."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from srr_fast import extract as module
from srr_fast.extract import ShardWriter, extract

from .plain_states import POOLINGS, assert_same, many
from .tiny_encoders import encoder, fresh_encoder, pair_tokenizer
from .tiny_models import CHAT_TEMPLATE, tiny, tokenizer

ROOT = Path(__file__).parent.parent


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
from tests import test_extract_cache
from srr_fast import extract as module
module.SHARD_TOKENS = 64
torch.set_num_threads(1)
counted = test_extract_cache.Counted()
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
counted.extract(test_extract_cache.many(20), cache_dir=sys.argv[1])
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
