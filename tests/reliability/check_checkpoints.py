# SPDX-License-Identifier: Apache-2.0
"""A checkpoint loads as the very ranker that was saved, or is refused: mutated files, forgers, other models."""

from __future__ import annotations

import ast
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from srr_fast import Calibration, SafetyRanker, TextRanker, checkpoint, fingerprint

from ..cases import ScoreCase
from ..tiny_models import WIDTH, fresh, tiny
from .row import Row

ROOT = Path(__file__).parents[2]
CASE = ScoreCase("", (4,), 12, {"proj_dim": 8, "num_heads": 2, "ffn_dim": 6})
STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 1.0, 1e-300, 10**30, -(10**400), "", "\ud800", "1", "../../etc/passwd", [], [1]),
    *({}, {"a": []}, [[[]]], "\0", 2**63, 0.5, [0.5, 0.5], "list", "pair", "mean", "gated"),
)


def build() -> SafetyRanker:
    ranker = CASE.build()
    ranker.calibration = Calibration(3.0, -1.0)
    ranker.model_id, ranker.metrics = "some/model", {"top1": 0.5, "by": {"a": [1, 2]}}
    ranker.model_fingerprint, ranker.reading_fingerprint = "abc", "def"
    return ranker


# ---- mutations -------------------------------------------------------------------------------------------------------


def of_bytes(rng: random.Random, data: bytes) -> bytes:
    """One to three flips, writes, insertions, deletions, repetitions or cuts."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at, length = rng.randrange(len(out) + 1), rng.choice((1, 1, 2, 8, 64))
        how = rng.randrange(6)
        if how == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            out[at : at + length] = rng.randbytes(min(length, len(out) - at))
        elif how == 2:
            out[at:at] = rng.choice((rng.randbytes(length), b"\0" * length, b"[" * length, b"9" * length))
        elif how == 3:
            del out[at : at + length]
        elif how == 4:
            out[at:at] = out[at : at + length]
        else:
            del out[at:]
    return bytes(out)


def of_json(rng: random.Random, value: Any) -> Any:
    """A value exchanged, a key or item dropped, doubled or renamed, somewhere in it."""
    inner = isinstance(value, dict | list) and value and rng.random() < 0.8
    if not inner:
        return rng.choice(STRANGE)
    copy = dict(value) if isinstance(value, dict) else list(value)
    key: Any = rng.choice(list(copy)) if isinstance(copy, dict) else rng.randrange(len(copy))
    how = rng.randrange(4)
    if how == 0:
        del copy[key]
    elif how == 1 and isinstance(copy, dict):
        copy[rng.choice((key + "x", "extra", ""))] = copy[key]
    else:
        copy[key] = of_json(rng, copy[key])
    return copy


def of_header(rng: random.Random, data: bytes) -> bytes:
    """The tensor file with its header changed as JSON, or its length alone."""
    size = struct.unpack("<Q", data[:8])[0]
    if rng.random() < 0.1:
        return (
            struct.pack("<Q", rng.choice((0, 1, size - 1, size + 1, 1 << 20, 1 << 40, 1 << 63, 2**64 - 1))) + data[8:]
        )
    header = json.dumps(of_json(rng, json.loads(data[8 : 8 + size]))).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def of_tensors(rng: random.Random, data: bytes) -> bytes:
    """A tensor dropped, renamed, reshaped, of another dtype or not finite; a well-made file."""
    tensors = safetensors.torch.load(data)
    name = rng.choice(sorted(tensors))
    value = tensors.pop(name)
    how = rng.randrange(6)
    if how == 1:
        tensors[name + rng.choice(("x", "/../../x", "\0"))] = value
    elif how == 2:
        tensors[name] = value.reshape(-1)[: rng.randrange(value.numel() + 1)]
    elif how == 3:
        tensors[name] = value.to(rng.choice((torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool)))
    elif how == 4:
        value.view(-1)[rng.randrange(value.numel())] = rng.choice((float("nan"), float("inf"), -float("inf")))
        tensors[name] = value
    elif how == 5:
        value.view(-1)[rng.randrange(value.numel())] += 1
        tensors[name] = value
    return safetensors.torch.save(tensors)


def sign(config: Any, tensors: bytes) -> Any:
    """As a forger would; a config that cannot be signed stays as it is."""
    if not isinstance(config, dict):
        return config
    return config | {"sha256": checkpoint.digest({k: v for k, v in config.items() if k != "sha256"}, tensors)}


Files = tuple[bytes, bytes]


def damaged_config(rng: random.Random, config: bytes, tensors: bytes) -> Files:
    return of_bytes(rng, config), tensors


def edited_config(rng: random.Random, config: bytes, tensors: bytes) -> Files:
    return json.dumps(of_json(rng, json.loads(config))).encode(), tensors


def forged_config(rng: random.Random, config: bytes, tensors: bytes) -> Files:
    return json.dumps(sign(of_json(rng, json.loads(config)), tensors)).encode(), tensors


def damaged_tensors(rng: random.Random, config: bytes, tensors: bytes) -> Files:
    return config, rng.choice((of_bytes, of_header, of_tensors))(rng, tensors)


def forged_tensors(rng: random.Random, config: bytes, tensors: bytes) -> Files:
    changed = rng.choice((of_bytes, of_header, of_tensors))(rng, tensors)
    return json.dumps(sign(json.loads(config), changed)).encode(), changed


MUTATIONS: tuple[Callable[[random.Random, bytes, bytes], Files], ...] = (
    damaged_config,
    edited_config,
    forged_config,
    damaged_tensors,
    forged_tensors,
)


def faithful(loaded: SafetyRanker, config: bytes, tensors: bytes) -> bool:
    """Whether a ranker is what these files say, read by nothing of this package."""
    said, kept = json.loads(config), safetensors.torch.load(tensors)
    fields = {name: list(v) if isinstance(v, tuple) else v for name, v in loaded.config.to_dict().items()}
    mine = loaded.state_dict()
    return (
        fields == said["ranker"]
        and loaded.calibration == (said["calibration"] and tuple(map(float, said["calibration"])))
        and all(
            getattr(loaded, name) == said[name] for name in ("model_id", "model_fingerprint", "reading_fingerprint")
        )
        and loaded.metrics == said["metrics"]
        and mine.keys() == kept.keys()
        and all(torch.equal(mine[name], kept[name]) for name in mine)
    )


def mutated(count: int, folder: Path, seed: int = 0) -> Counter[str]:
    """What became of so many mutated checkpoints: refused, loaded as saved, loaded as a forger wrote, or worse."""
    build().save_pretrained(folder)
    paths = folder / checkpoint.CONFIG_FILE, folder / checkpoint.TENSOR_FILE
    original = paths[0].read_bytes(), paths[1].read_bytes()
    rng, found = random.Random(seed), Counter[str]()
    while found.total() < count:
        mutate = rng.choice(MUTATIONS)
        files = mutate(rng, *original)
        if files == original:
            continue
        for path, data in zip(paths, files, strict=True):
            path.write_bytes(data)
        signed = mutate in (forged_config, forged_tensors)
        try:
            loaded = SafetyRanker.from_pretrained(folder)
        except ValueError as error:
            found["refused" if str(error).startswith("from_pretrained: ") else f"unnamed: {error}"] += 1
            continue
        except Exception as error:
            found[f"{mutate.__name__}: {type(error).__name__}: {error}"] += 1
            continue
        if faithful(loaded, *original):
            found["loaded as saved"] += 1
        else:
            found["loaded as forged" if signed and faithful(loaded, *files) else f"{mutate.__name__}: silent"] += 1
    return found


HARMLESS = {"refused", "loaded as saved", "loaded as forged"}


def check_mutations() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        found = mutated(20_000, Path(folder))
    bad = {what: n for what, n in found.items() if what not in HARMLESS}
    harmless = ", ".join(f"{found[what]:,} {what}" for what in sorted(HARMLESS))
    figure = f"{sum(bad.values())} bad; {harmless}" + "".join(f"; {n} {what[:100]}" for what, n in bad.items())
    yield Row("20,000 mutated checkpoints, two in five signed anew", figure, "0 crashes, 0 silent loads", not bad)


# ---- what a folder may be --------------------------------------------------------------------------------------------


def refused(load: Callable[[], object], words: str, error: type[Exception] = ValueError) -> str | None:
    """None if refused with these words, else what happened."""
    try:
        load()
    except error as raised:
        return None if words in str(raised) else str(raised)
    except Exception as raised:
        return f"{type(raised).__name__}: {raised}"
    return "accepted"


def row(check: str, found: list[str | None]) -> Row:
    bad = [what for what in found if what is not None]
    figure = f"{len(found) - len(bad)} of {len(found)} refused" + "".join(f"; {what[:100]}" for what in bad)
    return Row(check, figure, "all refused", bool(found) and not bad)


def check_places() -> Iterator[Row]:
    """Ends of links, endless files, headers that lie, paths in the content."""
    with tempfile.TemporaryDirectory() as name:
        folder, found = Path(name), []

        def with_file(file: str, make: Callable[[Path], object], words: str) -> None:
            build().save_pretrained(folder)
            (folder / file).unlink()
            make(folder / file)
            found.append(refused(lambda: SafetyRanker.from_pretrained(folder), words))
            (folder / file).unlink()

        for file in (checkpoint.CONFIG_FILE, checkpoint.TENSOR_FILE):
            with_file(file, lambda path: path.symlink_to("/dev/zero"), "not a regular file")
            with_file(file, lambda path: path.symlink_to(path.name), "cannot be read")
            with_file(file, os.mkfifo, "not a regular file")
            with_file(file, lambda path: (path.touch(), os.truncate(path, 1 << 42)), "wanted at most")
            with_file(file, lambda path: path.symlink_to("/etc/passwd"), "from_pretrained")
        yield row("links to devices, to themselves and to other files; pipes; files of 4 TiB", found)
        build().save_pretrained(folder)
        config = json.loads((folder / checkpoint.CONFIG_FILE).read_bytes())
        found = []
        for size in (1 << 30, 1 << 40, 1 << 63, 2**64 - 1):
            data = struct.pack("<Q", size) + b"{" + b" " * 1000
            (folder / checkpoint.TENSOR_FILE).write_bytes(data)
            (folder / checkpoint.CONFIG_FILE).write_text(json.dumps(sign(config, data)))
            found.append(refused(lambda: SafetyRanker.from_pretrained(folder), "from_pretrained"))
        yield row("tensor headers that claim up to 2^64 bytes", found)
        outside = folder / "outside"
        inner = folder / "inner"
        ranker = build()
        ranker.model_id = "../../outside"
        ranker.metrics = {"../outside": "../outside"}
        ranker.save_pretrained(inner)
        SafetyRanker.from_pretrained(inner)
        written = sorted(path.name for path in inner.iterdir())
        ok = not outside.exists() and written == ["README.md", "config.json", "model.safetensors"]
        yield Row("paths in a checkpoint's texts", "none is followed" if ok else f"wrote {written}", "none", ok)
        ids = [
            "../nowhere",
            "/nowhere",
            "~/nowhere",
            "a/../../etc",
            "a/b/c",
            "a//b",
            "https://x/y",
            "a\0b",
            "-",
            "a" * 300,
        ]
        os.environ["HF_HUB_OFFLINE"] = "1"
        found = [
            refused(lambda i=i: SafetyRanker.from_pretrained(i), "from_pretrained", FileNotFoundError) for i in ids
        ]
        yield row("ids that are no hub ids", found)


def check_versions() -> Iterator[Row]:
    """Format 1 is the first one; there is nothing older to read."""
    with tempfile.TemporaryDirectory() as name:
        folder, found = Path(name), []
        build().save_pretrained(folder)
        path = folder / checkpoint.CONFIG_FILE
        config, tensors = json.loads(path.read_bytes()), (folder / checkpoint.TENSOR_FILE).read_bytes()
        for version in (0, 2, 1.0, "1", True, None):
            path.write_text(json.dumps(sign(config | {"format_version": version}, tensors)))
            want = f"format_version must be 1, got {version!r}"
            found.append(refused(lambda: SafetyRanker.from_pretrained(folder), want))
    yield row(f"other format versions than {checkpoint.FORMAT_VERSION}, the first", found)
    bundled = ROOT / "srr_fast" / "minichat" / "ranker"
    ranker = SafetyRanker.from_pretrained(bundled)
    ok = faithful(ranker, *((bundled / f).read_bytes() for f in (checkpoint.CONFIG_FILE, checkpoint.TENSOR_FILE)))
    yield Row("the bundled checkpoint of format 1", "read as it is" if ok else "changed", "read as it is", ok)


def check_models() -> Iterator[Row]:
    found: list[str | None] = []
    for options, words in (
        (dict(d=WIDTH + 1), str(WIDTH + 1)),
        (dict(d=WIDTH, ranker={"layer": 4}), "layer must be in 1 .. 3"),
        (dict(d=WIDTH, ranker={"layer": (1, 2, 9)}), "layer must be in 1 .. 3"),
    ):
        ranker = ScoreCase("", (4,), **options).build()
        found.append(refused(lambda r=ranker: TextRanker(tiny("llama"), None, r), words))
    yield row("rankers of another width or depth", found)
    ranker = ScoreCase("", (4,), WIDTH).build()
    ranker.model_fingerprint = fingerprint.of_model(tiny("llama"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        TextRanker(tiny("llama"), None, ranker)
        quiet = not caught
        TextRanker(fresh("llama", seed=1), None, ranker)
    ok = quiet and len(caught) == 1 and "fingerprint" in str(caught[0].message)
    yield Row("a model of the same shape with other weights", "warns" if ok else "silent", "warns", ok)


# ---- code that comes with a model ------------------------------------------------------------------------------------


def untrusted_calls() -> list[str]:
    """Calls of an Auto class's from_pretrained that leave it to the terminal whether to trust a repository's code, or
    decide that they do."""
    found = []
    for path in sorted((ROOT / "srr_fast").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                if isinstance(node.value, ast.Constant) and node.value.value is not False:
                    found.append(f"{path.name}: {ast.unparse(node)}")
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("from_pretrained"):
                names = {keyword.arg for keyword in node.keywords}
                if "Auto" in ast.unparse(node.func) and not names & {"trust_remote_code", None}:
                    found.append(f"{path.name}:{node.lineno}: {ast.unparse(node)[:60]}")
    return found


LOADERS = {
    "load_backbone": "from srr_fast.backbone import load_backbone as f; f(m)",
    "guards.load_guard": "from srr_fast.guards import load_guard as f; f(m)",
    "load_causal": "from srr_fast.loading import load_causal as f; f(m)",
}


def remote_code_runs(folder: Path, statement: str) -> bool:
    """Whether a model's own code ran, with somebody answering yes to every question."""
    mark = folder / "ran"
    mark.unlink(missing_ok=True)
    (folder / "own.py").write_text(
        f"open({str(mark)!r}, 'w').close()\n"
        "from transformers import PretrainedConfig\n"
        "class Config(PretrainedConfig): model_type = 'own'\n"
    )
    (folder / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}')
    subprocess.run(
        [sys.executable, "-c", f"m = {str(folder)!r}; {statement}"],
        input="y\n" * 100,
        text=True,
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"},
        timeout=300,
        check=False,
    )
    return mark.exists()


def check_remote_code() -> Iterator[Row]:
    calls = untrusted_calls()
    yield Row(
        "trust_remote_code in the source", "; ".join(calls) or "named in every call, never on", "never", not calls
    )
    with tempfile.TemporaryDirectory() as name:
        ran = [loader for loader, code in LOADERS.items() if remote_code_runs(Path(name), code)]
        told = "from srr_fast.backbone import load_backbone as f; f(m, trust_remote_code=True)"
        asked = remote_code_runs(Path(name), told)
    figure = (
        f"run by {', '.join(ran) or 'none'} of {len(LOADERS)} loaders; {'run' if asked else 'not run'} when asked for"
    )
    yield Row("a model's own code, with `yes` on stdin", figure, "run when asked for alone", asked and not ran)
