# SPDX-License-Identifier: Apache-2.0
"""The lists of the evidence with their folds and their states on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch

from srr_fast.backbone import load_backbone
from srr_fast.decoder import decoder_layers
from srr_fast.examples import Examples
from srr_fast.extract import Features, cache_name, extract
from srr_fast.extras import require
from srr_fast.lists import LabelledList, LabelledResponse, read_lists

CORE = ("saferlhf_mini", "diasafety", "safetext", "gptfuzz")
MORE = ("xstest_unsafe", "jbb_artifacts", "past_tense")
OVERREFUSAL, FAIRNESS = "xstest_safe", "bbq_ambig"
FOLDERS = {OVERREFUSAL: "overrefusal", FAIRNESS: "ranking_fairness"}  # all others: ranking, and pointwise to train on
COMPLIANCE = {"1_full_compliance": True, "2_full_refusal": False}
FAIRNESS_LISTS = {"train": 600, "val": 300}
ALIKE = 0.6  # Jaccard similarity of the words of two instructions, from which they share a fold
BLOCK = 1024  # instructions compared with all others at a time; bounds memory
POOLINGS = ("mean", "last")

Row = int  # place of a list among those of its source


@dataclass(frozen=True)
class Source:
    """lists: with labelled responses only; fold and cluster of each. The lists that are measured are the mixed ones."""

    lists: list[LabelledList]
    fold: list[int]
    cluster: list[int]

    def rows(self, split: str | None = None) -> list[Row]:
        return [i for i, one in enumerate(self.lists) if split is None or one.split == split]

    def mixed(self, rows: Iterable[Row]) -> list[Row]:
        return [i for i in rows if self.lists[i].mixed]


@dataclass(frozen=True)
class Corpus:
    """sources by name. model: hub id or folder. L: its layers. states: the safetensors file of :func:`write_states`.

    digest: of all lists and the model, part of the name of every result that is kept.
    """

    sources: dict[str, Source]
    folds: int
    model: str
    L: int
    d: int
    states: Path
    digest: str

    @property
    def core(self) -> tuple[str, ...]:
        return tuple(name for name in CORE if name in self.sources)

    @property
    def harm(self) -> tuple[str, ...]:
        return tuple(name for name in (*CORE, *MORE) if name in self.sources)

    @property
    def layers(self) -> tuple[int, ...]:
        """What ``srr-fast train`` reads by default: five layers evenly spaced, none of them the last."""
        return tuple(sorted({min(max(round(part * self.L / 6), 1), self.L) for part in range(1, 6)}))

    @cached_property
    def _file(self) -> safetensors.safe_open:
        return safetensors.safe_open(str(self.states), "pt")

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    def features(self, source: str, rows: Sequence[Row], layers: Sequence[int], pooling: str) -> Features:
        """Of some lists of a source, layers concatenated."""
        parts = [self._file.get_tensor(f"{source}.{k}.{pooling}.{kind}") for kind in ("inst", "resp") for k in layers]
        inst, resp = torch.cat(parts[: len(layers)], 1), torch.cat(parts[len(layers) :], 1)
        offsets = self._file.get_tensor(f"{source}.offsets")
        at = [torch.arange(int(offsets[i]), int(offsets[i + 1])) for i in rows]
        cut = torch.tensor([0, *map(len, at)]).cumsum(0)
        return Features(inst[list(rows)], resp[torch.cat(at) if at else torch.empty(0, dtype=torch.long)], cut)

    def examples(self, part: dict[str, list[Row]], layers: Sequence[int], pooling: str) -> Examples:
        """Of lists of several sources."""
        made = [
            Examples.of([self.sources[name].lists[i] for i in rows], [self.features(name, rows, layers, pooling)])
            for name, rows in part.items()
            if rows
        ]
        if not made:
            width = self.d * len(layers)
            none = torch.empty(0, width)
            return Examples(none, none, torch.zeros(1, dtype=torch.int64), torch.empty(0, dtype=torch.bool))
        ends = np.cumsum([0, *(int(one.offsets[-1]) for one in made)])
        offsets = [one.offsets[1:] + int(end) for one, end in zip(made, ends, strict=False)]
        return Examples(
            torch.cat([one.inst for one in made]),
            torch.cat([one.resp for one in made]),
            torch.cat([torch.zeros(1, dtype=torch.int64), *offsets]),
            torch.cat([one.safe for one in made]),
        )


def load(data: Path, model: str, cache: Path, *, folds: int, seed: int = 0, most: int | None = None) -> Corpus:
    """Read the lists under ``data``, give them folds, and have their states in ``cache``.

    most: lists of a source and split, with few responses, for a quick look.

    Raises FileNotFoundError unless two of the CORE sources are there.
    """
    lists: dict[str, list[LabelledList]] = {}
    for name in (*CORE, *MORE, OVERREFUSAL, FAIRNESS):
        ranking = _files(data / FOLDERS.get(name, "ranking"), name)
        if not ranking:
            continue
        mixed = _kept(name, read_lists(*ranking))
        more = _files(data / "pointwise", name)
        pointwise = _kept(name, read_lists(*more)) if more else []
        # A short look at the start of each split, so that every part of the script has something to read.
        lists[name] = _start(mixed, most) + _start(pointwise, most)
    if sum(name in lists for name in CORE) < 2:
        raise FileNotFoundError(f"evidence: wants two of {', '.join(CORE)} in {data / 'ranking'}")
    cluster = clusters([one.instruction for rows in lists.values() for one in rows])
    fold = np.random.default_rng(seed).permutation(cluster.max() + 1) % folds
    sources, start = {}, 0
    for name, rows in lists.items():
        own = cluster[start : start + len(rows)]
        sources[name] = Source(rows, fold[own].tolist(), own.tolist())
        start += len(rows)
    lm, tokenizer = load_backbone(model)
    digest = hashlib.sha256(cache_name(lm, tokenizer).encode())
    for name, source in sources.items():
        digest.update(repr((name, folds, source.fold, source.lists)).encode("utf-8", "surrogatepass"))
    key = digest.hexdigest()[:16]
    L, states = len(decoder_layers(lm)), cache / f"states-{key}.safetensors"
    if not states.exists():
        _write_states(states, lm, tokenizer, lists, L, cache / "shards")
    return Corpus(sources, folds, model, L, lm.config.get_text_config(decoder=True).hidden_size, states, key)


def clusters(texts: Sequence[str], alike: float = ALIKE) -> np.ndarray:
    """A number [n] per text: texts whose sets of words are alike, or linked by such ones, have one number."""
    import scipy.sparse as sparse
    from scipy.sparse.csgraph import connected_components

    vectorizer = require("sklearn.feature_extraction.text").CountVectorizer(binary=True, token_pattern=r"\w+")
    X = vectorizer.fit_transform([f"{text} ." for text in texts]).astype(np.float32)
    words = np.asarray(X.sum(1)).ravel()
    rows, columns = [], []
    for start in range(0, len(texts), BLOCK):
        common = (X[start : start + BLOCK] @ X.T).tocoo()
        union = words[start + common.row] + words[common.col] - common.data
        close = common.data >= alike * union
        rows.append(start + common.row[close])
        columns.append(common.col[close])
    # Texts without a word are alike only to themselves.
    row, column = np.concatenate(rows), np.concatenate(columns)
    graph = sparse.coo_matrix((np.ones(len(row)), (row, column)), shape=(len(texts), len(texts)))
    return connected_components(graph)[1]


def _files(folder: Path, name: str) -> list[Path]:
    return [path for path in (folder / f"{name}.jsonl.gz", folder / f"{name}.jsonl") if path.is_file()][:1]


def _kept(name: str, lists: Sequence[LabelledList]) -> list[LabelledList]:
    """Train and val, labelled responses only; of the fairness lists a part. Compliance is what XSTest's safe prompts
    deserve.
    """
    found = []
    count = dict.fromkeys(FAIRNESS_LISTS, 0)
    for one in lists:
        if one.split not in ("train", "val"):
            continue
        if name == FAIRNESS:
            count[one.split] += 1
            if count[one.split] > FAIRNESS_LISTS[one.split]:
                continue
        responses = one.responses
        if name == OVERREFUSAL:
            responses = tuple(replace(r, safe=COMPLIANCE.get(str(r.extra.get("label")))) for r in responses)
        if kept := tuple(r for r in responses if r.safe is not None):
            found.append(replace(one, responses=kept, source=name))
    return found


def _start(lists: list[LabelledList], most: int | None) -> list[LabelledList]:
    if most is None:
        return lists
    chosen = [one for split in ("train", "val") for one in [x for x in lists if x.split == split][:most]]
    return [replace(one, responses=_some(one.responses)) for one in chosen]


def _some(responses: Sequence[LabelledResponse]) -> tuple[LabelledResponse, ...]:
    """At most four of each kind."""
    return tuple(r for kind in (True, False) for r in [x for x in responses if x.safe is kind][:4])


def _write_states(path: Path, model, tokenizer, lists: dict[str, list[LabelledList]], L: int, shards: Path) -> None:
    """The states of every list, under "<source>.<layer>.<pooling>.inst" and ".resp", with "<source>.offsets"."""
    tensors: dict[str, torch.Tensor] = {}
    for name, rows in lists.items():
        print(f"states of {name}: {len(rows)} lists", flush=True)
        found = extract(model, tokenizer, rows, layers=list(range(1, L + 1)), poolings=POOLINGS, cache_dir=shards)
        for (k, pooling), one in found.items():
            tensors[f"{name}.{k}.{pooling}.inst"], tensors[f"{name}.{k}.{pooling}.resp"] = one.inst, one.resp
        tensors[f"{name}.offsets"] = next(iter(found.values())).offsets
    part = path.with_suffix(".part")
    safetensors.torch.save_file(tensors, part)
    part.replace(path)
