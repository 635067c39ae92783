# SPDX-License-Identifier: Apache-2.0
"""Pools hidden states while tokens are generated, in memory that does not grow with their number.

Knows positions and which rows are alive; knows nothing of prompts, texts or scores.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from . import functional, reference
from .hooking import LayerListener, joined

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn


class Generated(NamedTuple):
    """What was generated for B prompts, n candidates each, and its pooled states.

    sequences: [B * n, P + T] int64, padded. lengths: [B * n] int64, generated tokens, the finishing one included.
    inst [B, d], resp [B * n, d]: float32; NaN for a candidate without a pooled token. seconds: that pooling took.
    """

    sequences: Tensor
    lengths: Tensor
    inst: Tensor
    resp: Tensor
    seconds: float


class Capture(LayerListener):
    """Pools the states of one ``generate`` call; a context manager, used once.

    layers:         as in :class:`LayerListener`; their states are concatenated.
    attention_mask: [B, P], 0 for left padding; P is the padded prompt length.
    n:              candidates per prompt: ``generate`` runs on B * n rows, row i * n + j is candidate j of prompt i.
    pooling, gate:  as in :func:`srr_fast.pool`.

    A prompt is pooled over its real tokens, once, whether its states come for B rows or for B * n equal ones. A
    candidate is pooled over its tokens up to, and without, the one that finished it: that one is EOS, or was sampled
    last and has no state. Both are what the row gives when run alone and unpadded, for a model that itself ignores
    padding.

    Compiled forwards are not heard: what runs one calls :meth:`follow` before and :meth:`take` after it.

    Pass :meth:`stopping_criteria` to ``generate``; it is how the capture learns which rows are alive. A decoding loop
    that leaves rows out of the forward sets ``rows``, int64, to those it computes, in their order.
    Raises RuntimeError when the states that come are not those of the tokens, one each.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        attention_mask: Tensor,
        n: int,
        pooling: str = "mean",
        gate: Tensor | None = None,
    ) -> None:
        super().__init__(layers)
        B, P = attention_mask.shape
        self.n, self.pooling, self.gate = n, pooling, gate
        self.prompt_length = P
        self.prompt_start = P - attention_mask.sum(1)
        self.lengths = torch.zeros(B * n, dtype=torch.int64, device=attention_mask.device)
        # Of a step's one token: [0, 1] while the row is alive, [0, 0] once it has finished.
        self.spans = torch.tensor([[0, 1]], device=attention_mask.device).repeat(B * n, 1)
        self.length = P  # positions of the sequences so far
        self.seen = 0  # positions whose states have come
        self.seconds = 0.0
        self.rows: Tensor | None = None  # None: all
        self.witness: list[Tensor] | None = None  # what the hooks saw last, kept where this is not None
        self._prompt: tuple[Tensor, Tensor] | None = None
        self._response: tuple[Tensor, Tensor] | None = None

    def stopping_criteria(self, eos: Sequence[int], others: StoppingCriteriaList) -> StoppingCriteriaList:
        """What to pass to ``generate`` in place of ``others``, which it asks on every step.

        eos: the ids that end a row in this call. others: whatever else ends single rows before the common end.
        """
        return StoppingCriteriaList([_RowTracker(self, eos, others)])

    def pooled(self) -> tuple[Tensor, Tensor]:
        """Pooled prompts [B, d] and candidates [B * n, d] in float32; NaN for a candidate without a pooled token.

        ``lengths`` [B * n] counts the generated tokens of each row, the finishing one included.
        """
        if self._prompt is None or self._response is None:
            raise RuntimeError("Capture: no states came")
        (inst, inst_weight), (resp, resp_weight) = self._prompt, self._response
        return inst / inst_weight[:, None], resp / resp_weight[:, None]

    def generated(self, sequences: Tensor) -> Generated:
        """The sequences that came of it, with what was pooled."""
        return Generated(sequences, self.lengths, *self.pooled(), self.seconds)

    def heard(self, parts: list[Tensor]) -> None:
        if self.witness is not None:
            self.witness = parts
        self.take(parts)

    def follow(self, parts: Sequence[Tensor]) -> bool:
        """Whether ``parts``, a forward's own, are what the hooks saw at its last position; if so, the hooks go."""
        seen, self.witness = self.witness or (), None
        same = len(parts) == len(seen) and all(map(torch.equal, (p[:, -1] for p in parts), (s[:, -1] for s in seen)))
        if same:
            self.unhook()
        return same

    def take(self, parts: Sequence[Tensor]) -> None:
        """Pool what one forward gave: states [rows, T, d] of each layer."""
        start = time.perf_counter()
        self._pool(joined(parts))
        self.seconds += time.perf_counter() - start

    def _pool(self, states: Tensor) -> None:
        """Take the states [rows, T, d] of one forward: new positions only, or the whole sequence without a cache."""
        B, P = len(self.prompt_start), self.prompt_length
        rows, T, d = states.shape
        missing = self.length - self.seen
        first = self.seen if missing >= T else 0
        wanted = B * self.n if self.rows is None else len(self.rows)
        prompts_alone = rows == B and first + T <= P
        if missing == 0 or T not in (min(T, missing), self.length) or not (rows == wanted or prompts_alone):
            raise RuntimeError(
                f"Capture: wants the states of {missing} new or all {self.length} tokens in {wanted} rows, got "
                f"{list(states.shape)}. The model adds positions of its own or runs a layer several times"
            )
        if self._prompt is None or self._response is None:
            dtype = reference.accumulation_dtype(states.dtype)
            self._prompt, self._response = (
                (states.new_zeros(M, d, dtype=dtype), states.new_zeros(M, dtype=dtype)) for M in (B, B * self.n)
            )
            self.gate = None if self.gate is None else self.gate.to(states.device)
        low, high = self.seen, first + T
        states = states[:, low - first :]
        if low < P:
            end = min(high, P) - low
            begin = (self.prompt_start - low).clamp(0, end)
            spans = torch.stack([begin, torch.full_like(begin, end)], 1)
            self._update(self._prompt, states[:: rows // B, :end], spans)
        if high > P:
            states = states[:, max(P - low, 0) :]
            if self.rows is None:
                self._update(self._response, states, self.spans)
            else:
                at = self.rows.to(states.device)
                running = (self._response[0][at], self._response[1][at])
                self._update(running, states, self.spans[self.rows])
                for whole, part in zip(self._response, running, strict=True):
                    whole[at] = part
        self.seen = high

    def _update(self, running: tuple[Tensor, Tensor], states: Tensor, spans: Tensor) -> None:
        spans = spans.to(states.device)
        functional.pool_update_(*running, states, spans, pooling=self.pooling, gate=self.gate)

    def advance(self, length: int, finished: Tensor) -> None:
        """A token was appended to every row: sequences are now ``length`` long; finished [rows] bool."""
        if self.seen != self.length or length != self.length + 1:
            raise RuntimeError(
                f"Capture: {self.seen} of {self.length} states came before token {length} was sampled. The model was "
                "compiled by hand (pass it uncompiled; with cache_implementation='static' generate compiles it), or "
                "the decoding method feeds tokens in another order"
            )
        self.length = length
        self.lengths += self.spans[:, 1]
        self.stop(finished)

    @property
    def alive(self) -> Tensor:
        """Rows that have not finished, bool [B * n]."""
        return self.spans[:, 1] != 0

    def stop(self, finished: Tensor) -> None:
        """Pool no more tokens of these rows, bool [B * n]."""
        self.spans[:, 1] *= ~finished


class _RowTracker(StoppingCriteria):
    """Tells a capture which rows have finished; itself stops those that ``others`` stop."""

    def __init__(self, capture: Capture, eos: Sequence[int], others: StoppingCriteriaList) -> None:
        self.capture = capture
        self.eos = torch.tensor(eos, dtype=torch.int64, device=capture.lengths.device)
        self.others = others

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        stopped = self.others(input_ids, scores, **kwargs)
        self.capture.advance(input_ids.shape[1], stopped | torch.isin(input_ids[:, -1], self.eos))
        return stopped
