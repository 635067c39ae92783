# SPDX-License-Identifier: Apache-2.0
"""Pooled states of labelled lists, for training and evaluation: each sequence read once, kept on disk between runs."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import fingerprint
from .decoder import decoder_layers, state_modules
from .forced import Reading, TruncatedForward, pool_readings, progress_bar
from .reading import Reader
from .shard_store import KEY_BYTES, ShardStore

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .lists import LabelledList

POOLINGS = ("mean", "last")  # gated pooling learns its gate from single tokens, which are not kept
SHARD_TOKENS = 1 << 15  # what a kill can lose
SHARD_BYTES = 1 << 26

Text = tuple[str, str | None]  # an instruction, and a response to it or None
Elsewhere = Callable[[list[tuple[list[Text], int]]], None]


@dataclass(frozen=True)
class Features:
    """Pooled states of one layer and pooling, on the CPU, as :meth:`SafetyRanker.score` takes them.

    inst: [B, d] float32. resp: [M, d] float32, a response without tokens is a row of NaN. offsets: [B + 1] int64, list
    b is ``resp[offsets[b]:offsets[b + 1]]``.
    """

    inst: Tensor
    resp: Tensor
    offsets: Tensor


def extract(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lists: Sequence[LabelledList],
    *,
    layers: Sequence[int],
    poolings: Sequence[str],
    cache_dir: str | Path | None = None,
    batch_tokens: int = 4096,
    elsewhere: Elsewhere | None = None,
) -> dict[tuple[int, str], Features]:
    """The pooled states of B instructions and M responses for each layer and pooling, ``{(layer, pooling): Features}``.

    model, tokenizer: as :func:`srr_fast.backbone.load_backbone` gives them; the texts become what
               :class:`srr_fast.TextRanker` reads.
    layers:    hidden_states indices k, 1 <= k <= L. On a causal model k = L, after the final norm, is there to compare
               with: no ranker can read it.
    poolings:  ``mean``, ``last``.
    cache_dir: keeps the states; None keeps nothing. A sequence that was read for all these layers and poolings at once,
               or for more, is not read again, whichever list or file it came with. A folder serves any number of
               backbones, lists and processes.
    batch_tokens: positions in one forward; bounds memory. A longer sequence is run alone.
    elsewhere: called with the texts of every shard that is missing, and its tokens, to give each of them to a
               :class:`ShardWriter`, in any process and order; wants cache_dir.

    A text that occurs again is read once. The forward ends at the deepest layer. Sequences longer than the model takes
    are shortened, see :class:`srr_fast.reading.Reader`; a warning counts those read now. Interrupted at any moment and
    started again, the cache ends with the files it would have had; a damaged file is computed again, with a warning.
    Raises TypeError or ValueError naming the argument.
    """
    L = len(decoder_layers(model))
    _check_arguments(model, layers, poolings, batch_tokens, L)
    if elsewhere is not None and cache_dir is None:
        raise ValueError("extract: elsewhere wants a cache_dir, where the states are found")
    reader = Reader("extract", model, tokenizer)
    index: dict[Text, int] = {}
    asked = [index.setdefault((row.instruction, None), len(index)) for row in lists]
    answered = [
        index.setdefault((row.instruction, response.text), len(index)) for row in lists for response in row.responses
    ]
    table = _Table(list(index), _names(layers, poolings), model.config.get_text_config(decoder=True).hidden_size)
    if cache_dir is None:
        for keys, rows in _read_missing(model, reader, table, layers, poolings, batch_tokens):
            table.put(keys, rows)
    else:
        store = ShardStore("extract", Path(cache_dir) / cache_name(model, tokenizer))
        table.fill(store)
        if table.missing:
            with store.alone():
                table.fill(store)
                if elsewhere is not None:
                    readings = _missing(reader, table)
                    elsewhere(
                        [
                            ([table.texts[key] for key in keys], sum(len(readings[key].ids) for key in keys))
                            for keys in _shards(readings, table.row_bytes)
                        ]
                    )
                    table.fill(store)
                    if table.missing:
                        raise RuntimeError(f"extract: {len(table.missing)} sequences were not read")
                else:
                    for keys, rows in _read_missing(model, reader, table, layers, poolings, batch_tokens):
                        store.write(keys, rows)
                        table.put(keys, rows)
    if reader.cut:
        warnings.warn(
            f"extract: {reader.cut} of {reader.count} sequences were longer than the {reader.most} tokens "
            f"{type(model).__name__} takes and were shortened",
            stacklevel=2,
        )
    offsets = torch.tensor(list(accumulate((len(row.responses) for row in lists), initial=0)), dtype=torch.int64)
    features = {}
    for k in layers:
        for pooling in poolings:
            states = table.rows.pop(f"{k}.{pooling}")
            features[k, pooling] = Features(states[asked], states[answered], offsets)
    return features


class ShardWriter:
    """Reads the texts of one shard and writes their file into the cache; see ``elsewhere`` of :func:`extract`.

    All arguments as :func:`extract` got them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        layers: Sequence[int],
        poolings: Sequence[str],
        cache_dir: str | Path,
        batch_tokens: int,
    ) -> None:
        self.model, self.reader = model, Reader("extract", model, tokenizer)
        self.layers, self.poolings, self.batch_tokens = layers, poolings, batch_tokens
        self.store = ShardStore("extract", Path(cache_dir) / cache_name(model, tokenizer))

    def __call__(self, texts: Sequence[Text]) -> None:
        d = self.model.config.get_text_config(decoder=True).hidden_size
        table = _Table(list(texts), _names(self.layers, self.poolings), d)
        readings, keys = _missing(self.reader, table), list(table.at)
        with TruncatedForward(self.model, state_modules(self.model, self.layers)) as forward:
            rows = _states(
                forward, table, readings, keys, self.layers, self.poolings, self.batch_tokens, progress_bar(0)
            )
        self.store.write(keys, rows)


def cache_name(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """The folder of a backbone inside a cache: type of the model, then a hash of all that its states depend on."""
    made_of = fingerprint.of_model(model), fingerprint.of_reading(model, tokenizer)
    parts = [*made_of, fingerprint.of_input(model, tokenizer), model.dtype]
    return f"{model.config.model_type}-{_hash(*map(str, parts)).hex()[: fingerprint.DIGITS]}"


class _Table:
    """A row for every distinct text and name, filled bit by bit."""

    def __init__(self, texts: list[Text], names: list[str], d: int) -> None:
        self.texts = {_hash(*(part for part in text if part is not None)): text for text in texts}
        self.at = {key: row for row, key in enumerate(self.texts)}
        self.rows = {name: torch.empty(len(texts), d) for name in names}
        self.missing = set(self.at)
        self.d = d

    @property
    def row_bytes(self) -> int:
        """Of one text in a file."""
        return 4 * self.d * len(self.rows)

    def put(self, keys: Sequence[bytes], rows: dict[str, Tensor]) -> None:
        at = [self.at[key] for key in keys]
        for name, values in rows.items():
            self.rows[name][at] = values
        self.missing.difference_update(keys)

    def fill(self, store: ShardStore) -> None:
        for keys, rows in store.rows(list(self.rows), self.missing.__contains__):
            self.put(keys, rows)


def _read_missing(
    model: PreTrainedModel,
    reader: Reader,
    table: _Table,
    layers: Sequence[int],
    poolings: Sequence[str],
    batch_tokens: int,
) -> Iterator[tuple[list[bytes], dict[str, Tensor]]]:
    """Keys and rows of what the table misses, shard by shard."""
    readings = _missing(reader, table)
    with (
        TruncatedForward(model, state_modules(model, layers)) as forward,
        progress_bar(sum(len(reading.ids) for reading in readings.values())) as progress,
    ):
        for keys in _shards(readings, table.row_bytes):
            yield keys, _states(forward, table, readings, keys, layers, poolings, batch_tokens, progress)


def _missing(reader: Reader, table: _Table) -> dict[bytes, Reading]:
    """The readings of what the table misses."""
    missing = [(key, *text) for key, text in table.texts.items() if key in table.missing]
    keys = [key for key, _, response in missing if response is None]
    readings = dict(zip(keys, reader.instructions([table.texts[key][0] for key in keys]), strict=True))
    pairs = [(key, instruction, response) for key, instruction, response in missing if response is not None]
    if pairs:
        keys, instructions, responses = map(list, zip(*pairs, strict=True))
        readings |= zip(keys, reader.pairs(instructions, responses), strict=True)
    return readings


def _states(
    forward: TruncatedForward,
    table: _Table,
    readings: dict[bytes, Reading],
    keys: Sequence[bytes],
    layers: Sequence[int],
    poolings: Sequence[str],
    batch_tokens: int,
    progress: Any,
) -> dict[str, Tensor]:
    """Rows by name of the keys of one shard."""
    read = [readings[key] for key in keys]
    pooled = pool_readings(forward, read, poolings, batch_tokens=batch_tokens, progress=progress)
    d = table.d
    return {
        f"{k}.{pooling}": states[:, slot * d : (slot + 1) * d].cpu().contiguous()
        for slot, k in enumerate(layers)
        for pooling, states in zip(poolings, pooled, strict=True)
    }


def _names(layers: Sequence[int], poolings: Sequence[str]) -> list[str]:
    return [f"{k}.{pooling}" for k in layers for pooling in poolings]


def _shards(readings: dict[bytes, Reading], row_bytes: int) -> Iterator[list[bytes]]:
    """The keys in shards, shortest sequences first.

    A shard ends where one more row, no shorter than those before, would make it too large. So what is in it does not
    change when other whole shards are there already: that makes a run after an interruption write the same files.
    """
    shard: list[bytes] = []
    for key in sorted(readings, key=lambda key: (len(readings[key].ids), key)):
        rows = len(shard) + 1
        if shard and (rows * len(readings[key].ids) > SHARD_TOKENS or rows * row_bytes > SHARD_BYTES):
            yield shard
            shard = []
        shard.append(key)
    if shard:
        yield shard


def _hash(*texts: str) -> bytes:
    """Of the texts and where each ends."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


def _check_arguments(
    model: PreTrainedModel, layers: Sequence[int], poolings: Sequence[str], batch_tokens: int, L: int
) -> None:
    if model.training:
        raise ValueError("extract: model is in training mode, its states are random; call model.eval()")
    for k in layers:
        if isinstance(k, bool) or not isinstance(k, int):
            raise TypeError(f"extract: layers must be ints, got {k!r}")
        if not 1 <= k <= L:
            raise ValueError(f"extract: layers must be in 1 .. {L} for {type(model).__name__}, got {k}")
    for name, values, allowed in (("layers", layers, None), ("poolings", poolings, POOLINGS)):
        if isinstance(values, str) or not values or len(set(values)) != len(values):
            raise ValueError(f"extract: {name} must be at least one, all different, got {values!r}")
        if allowed and not set(values) <= set(allowed):
            raise ValueError(f"extract: {name} must be among {allowed}, got {values!r}")
    if isinstance(batch_tokens, bool) or not isinstance(batch_tokens, int) or batch_tokens < 1:
        raise ValueError(f"extract: batch_tokens must be an int of at least 1, got {batch_tokens!r}")
