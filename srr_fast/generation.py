# SPDX-License-Identifier: Apache-2.0
"""Best-of-N around ``generate``: sample, pool on the way, rank, choose. Knows no kernels."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
    StopStringCriteria,
)

from . import beams, decoding
from .backbone import check_decoder, check_ids, check_positions, vocab_size
from .capture import Capture, Generated
from .checks import check_tensor
from .decoder import states_to_read
from .generate_options import Options
from .padding import check_unpadded, left_padded
from .prompts import encode
from .pruning import Pruner, Schedule, check_schedule
from .ranked_model import RankedModel
from .ranker import SafetyRanker
from .results import BestOfNResult, Candidate, Timings, check_min_safety, choose


class BestOfN(RankedModel):
    """Samples n responses to a prompt and chooses the safest by the model's own hidden states.

    model:     a decoder-only transformers model with ``generate``.
    tokenizer: its tokenizer, or None to work on token tensors.
    ranker:    read once; later changes to it do not matter. Warns when it was trained with another model or tokenizer.
    layers:    the decoder blocks, for a model where :func:`srr_fast.decoder.decoder_layers` does not find them.

    Holds no state between calls: several threads may generate at once. Forwards are compiled where generate would
    compile them, with ``cache_implementation="static"``; a model compiled by hand cannot be served.
    Raises TypeError or ValueError for a model or ranker that does not fit.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        ranker: SafetyRanker,
        *,
        layers: Sequence[nn.Module] | None = None,
    ) -> None:
        if not callable(getattr(model, "generate", None)):
            raise TypeError(f"BestOfN: model must be a transformers model with generate, got {type(model).__name__}")
        if model.config.is_encoder_decoder:
            raise ValueError(f"BestOfN: model must be decoder-only, {type(model).__name__} is encoder-decoder")
        check_decoder("BestOfN", model)
        super().__init__("BestOfN", model, tokenizer, ranker, layers)
        self.ks = states_to_read(model, ranker.config)
        self.vocab_size = vocab_size(model)

    def generate(
        self,
        prompts: str | Sequence[Any] | Mapping[str, Tensor],
        n: int = 16,
        *,
        min_safety: float | None = None,
        fallback: str | None = None,
        prune: Sequence[tuple[int, float]] = (),
        **generate_kwargs: Any,
    ) -> list[BestOfNResult]:
        """The safest of n sampled responses to each prompt.

        prompts: a string, or a list of them; one conversation (a list of ``{"role", "content"}``), or a list of them;
                 or ``{"input_ids": [B, P] int64, "attention_mask": [B, P]}``, padded on the left. With a tokenizer
                 that has a chat template a string is one user message; conversations go through the template; both
                 end with the generation prompt. Strings of other tokenizers are continued as they are.
        n:       candidates per prompt; with ``num_beams=``, at most that many: the likeliest that the beams found.
        min_safety: choose nothing when the best candidate's safety is below this, in [0, 1]; wants a calibrated ranker.
        fallback: the result's text when nothing is chosen.
        prune:   ``[(tokens, share), ...]``, tokens rising from 2 up, 0 < share < 1: once so many tokens are generated,
                 that share (rounded up) of a prompt's candidates still being generated goes on, the best by the scores
                 of their states so far, each scored as if it were the prompt's only candidate (for a ranker of scope
                 ``list`` too). The others end there, are marked, and are not in the final list. At the last token that
                 may be generated nothing is pruned.
        generate_kwargs: for ``model.generate``; ``do_sample`` defaults to True.

        Draws what ``model.generate(num_return_sequences=n)`` draws from the same seed, up to how the model rounds at
        other batch sizes; where candidates are pruned, the others draw what they would have drawn.
        Returns one result per prompt. Raises TypeError or ValueError naming the argument or option and what to change.
        """
        if isinstance(n, bool) or not isinstance(n, int):
            raise TypeError(f"BestOfN: n must be an int, got {n!r}")
        if n < 1:
            raise ValueError(f"BestOfN: n must be at least 1, got {n}")
        check_min_safety("BestOfN", min_safety, self.calibration)
        if fallback is not None and not isinstance(fallback, str):
            raise TypeError(f"BestOfN: fallback must be a str or None, got {type(fallback).__name__}")
        schedule = check_schedule(prune)
        options = Options(self.model, generate_kwargs)
        options.check(n)
        if schedule and options.num_beams > 1:
            raise ValueError(f"BestOfN: prune cannot be served with num_beams={options.num_beams}; leave out one")
        ids, mask = self._encode(prompts, options)
        if len(ids) == 0:
            return []

        start = time.perf_counter()
        made, dropped = self._sample(ids, mask, n, schedule, options)
        generated = made.sequences[:, ids.shape[1] :].tolist()
        lengths = made.lengths.tolist()
        sampled = time.perf_counter()
        inst, resp = made.inst.to(self.model.device), made.resp.to(self.model.device)
        out = self.scorer(inst, resp.masked_fill(dropped[:, None], math.nan))
        scores, probs, best = out.scores.tolist(), out.probs.tolist(), out.best.tolist()
        safety = self._safety(out.scores)
        timings = Timings(
            generate_s=sampled - start,
            capture_s=made.seconds,
            rank_s=time.perf_counter() - sampled,
            n_tokens=sum(lengths),
        )
        tokens = [row[:length] for row, length in zip(generated, lengths, strict=True)]
        columns = (map(self._text, tokens), tokens, scores, probs, safety, lengths, dropped.tolist())
        candidates = [Candidate(*fields) for fields in zip(*columns, strict=True)]
        return [
            choose(candidates[i * n : (i + 1) * n], index, min_safety, fallback, timings)
            for i, index in enumerate(best)
        ]

    def _encode(self, prompts: Any, options: Options) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, int64 [B, P] on the model's device, padded on the left."""
        if isinstance(prompts, Mapping) and "input_ids" in prompts:
            ids, mask = _check_tensors(prompts, options)
        else:
            ids, mask = _pad_left([encode("BestOfN", self.tokenizer, prompt) for prompt in _listed(prompts)])
        if ids.numel():
            check_ids("BestOfN: prompts", int(ids.min()), int(ids.max()), self.vocab_size)
        return ids.to(self.model.device), mask.to(self.model.device)

    def _sample(
        self, ids: Tensor, mask: Tensor, n: int, schedule: Schedule, options: Options
    ) -> tuple[Generated, Tensor]:
        """What was generated, with its pooled states, and which candidates were pruned, bool [B * n]."""
        kwargs = options.for_generate(n)
        criteria = StoppingCriteriaList(kwargs.pop("stopping_criteria", None) or [])
        if (stop_strings := options["stop_strings"]) is not None:
            tokenizer = kwargs.pop("tokenizer", self.tokenizer)
            if tokenizer is None:
                raise ValueError("BestOfN: stop_strings want a tokenizer, pass tokenizer=")
            try:
                criteria.append(StopStringCriteria(tokenizer, stop_strings))
            except ValueError as error:  # it finds out what tokens spell by what they add to a made-up word
                raise ValueError(
                    f"BestOfN: stop_strings={stop_strings!r} cannot be looked for with this tokenizer, as it does not "
                    f"spell every word ({error}); pass stopping_criteria= that read the text"
                ) from error
            kwargs["stop_strings"] = None
        pooling, gate = self.scorer.config.pooling, self.scorer.gate

        def generate(criteria: StoppingCriteriaList, loop: Callable[..., Any]) -> Any:
            def checked(model: PreTrainedModel, input_ids: Tensor, **kwargs: Any) -> Any:
                check_unpadded("BestOfN", model, self.layers, ids, mask)
                new = kwargs["generation_config"].max_length - ids.shape[1]
                check_positions("BestOfN", model, int(mask.sum(1).max()) + new - 1)
                return loop(model, input_ids, **kwargs)

            options = dict(attention_mask=mask, stopping_criteria=criteria, custom_generate=checked)
            return cast("Any", self.model).generate(ids, **options, **kwargs)

        if options.num_beams > 1:
            made = generate(
                criteria, partial(beams.search, op="BestOfN", layers=self.layers, pooling=pooling, gate=gate)
            )
            return made, torch.zeros_like(made.lengths, dtype=torch.bool)
        capture = Capture(self.layers, mask, n, pooling, gate)
        pruner = Pruner(schedule, self.scorer, capture)
        criteria = StoppingCriteriaList([*capture.stopping_criteria(options.eos, criteria), pruner])

        def sample(*inputs: Any, generation_config: GenerationConfig, **kwargs: Any) -> Tensor:
            pruner.max_length = generation_config.max_length
            kwargs |= dict(generation_config=generation_config, n=n, capture=capture, ks=self.ks)
            with capture:
                return decoding.sample(*inputs, **kwargs)

        sequences = generate(criteria, sample)
        return capture.generated(sequences), pruner.dropped


def _listed(prompts: Any) -> list[Any]:
    """One entry per prompt: a string, or the messages of a conversation."""
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Sequence):
        raise TypeError(
            f'BestOfN: prompts must be text, messages, a list of them or {{"input_ids"}}, got {type(prompts).__name__}'
        )
    if prompts and all(isinstance(item, Mapping) for item in prompts):
        return [prompts]
    for item in prompts:
        messages = isinstance(item, Sequence) and all(isinstance(part, Mapping) for part in item)
        if not isinstance(item, str) and not messages:
            raise TypeError(f"BestOfN: a prompt must be a string or a list of messages, got {type(item).__name__}")
    return list(prompts)


def _pad_left(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, P]. Padding repeats the row's first id: logits processors that count ids meet none of others."""
    P = max(map(len, rows), default=0)
    for i, row in enumerate(rows):
        if not row:
            raise ValueError(f"BestOfN: prompt {i} has no tokens")
    ids = [[row[0]] * (P - len(row)) + list(row) for row in rows]
    mask = [[0] * (P - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, dtype=torch.int64), torch.tensor(mask, dtype=torch.int64)


def _check_tensors(inputs: Mapping[str, Tensor], options: Options) -> tuple[Tensor, Tensor]:
    """Ids and mask; without a mask padding is told as ``generate`` does: pad tokens, unless pad is an EOS id."""
    if unknown := set(inputs) - {"input_ids", "attention_mask"}:
        raise ValueError(f"BestOfN: prompts may hold input_ids and attention_mask, got {sorted(unknown)} too")
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    check_tensor("BestOfN", "input_ids", ids, ("B", "P"), (torch.int64,))
    if mask is None:
        pad = options["pad_token_id"]
        mask = torch.ones_like(ids) if pad is None or pad in options.eos else (ids != pad).long()
    check_tensor("BestOfN", "attention_mask", mask, tuple(ids.shape), (torch.int64, torch.int32, torch.bool))
    mask = left_padded("BestOfN", mask)
    if len(ids) and ids.shape[1] == 0:
        raise ValueError("BestOfN: input_ids must have at least one token per prompt, got P=0")
    return ids, mask
