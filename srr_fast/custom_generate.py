# SPDX-License-Identifier: Apache-2.0
"""Best-of-N as the decoding loop of transformers' own ``model.generate``. Knows no texts."""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteriaList
from transformers.generation import MaxLengthCriteria
from transformers.utils import ModelOutput

from . import beams, cache_argument, decoding, fingerprint, reference
from .backbone import check_decoder, check_positions
from .capture import Capture
from .decoder import layers_to_read, states_to_read
from .generate_options import SERVED
from .padding import check_unpadded, left_padded
from .prompts import eos_ids
from .ranker import SafetyRanker, check_ranker

OUTPUTS = ("output_scores", "output_logits", "output_hidden_states", "output_attentions")


@dataclass
class BestOfNOutput(ModelOutput):
    """What ``generate(return_dict_in_generate=True)`` answers for B prompts of N candidates each.

    sequences:           [B, P + T] int64, the best candidate of each prompt, its prompt included; as without
                         ``return_dict_in_generate``.
    best:                [B] int64, index of the best candidate; -1 when all are out.
    best_score:          [B] float32, its score; -inf when all are out.
    candidate_scores:    [B, N] float32, cosine to the prompt; -inf for a candidate that is out (no token to pool, or
                         a state that is not finite). candidate_probs: [B, N], their softmax.
    candidate_safety:    [B, N] float32, calibrated scores in [0, 1]; None for a ranker without calibration.
    candidate_lengths:   [B, N] int64, generated tokens, the one that ended the candidate included.
    candidate_sequences: [B, N, P + T'] int64, all candidates, padded.
    """

    sequences: Tensor | None = None
    best: Tensor | None = None
    best_score: Tensor | None = None
    candidate_scores: Tensor | None = None
    candidate_probs: Tensor | None = None
    candidate_safety: Tensor | None = None
    candidate_lengths: Tensor | None = None
    candidate_sequences: Tensor | None = None


def best_of_n(ranker: SafetyRanker, *, layers: Sequence[nn.Module] | None = None) -> Callable[..., Any]:
    """A decoding loop for ``model.generate(**inputs, num_return_sequences=N, do_sample=True, custom_generate=...)``.

    ranker: read when first used on a device; later changes to it do not matter. layers: as for :class:`BestOfN`.

    ``generate`` then answers the safest of N sampled sequences of each prompt, [B, P + T] int64: the prompt, the
    candidate up to and including the token that ended it, padding. With ``num_beams``, of the N likeliest that the
    beams found. A prompt whose candidates are all out is followed by padding alone. With
    ``return_dict_in_generate=True`` it answers a :class:`BestOfNOutput`.

    ``generate`` hands over neither ``streamer`` nor ``tokenizer``: a streamer gets the prompts and then nothing, and
    ``stop_strings`` raise; :class:`BestOfN` refuses the one and serves the other. The loop raises ValueError for an
    option it cannot serve, and for prompts that are not whole or not padded on the left.
    """
    check_ranker("best_of_n", ranker)
    prepare = functools.cache(ranker.prepare)
    config, calibration = ranker.config, ranker.calibration
    checked: weakref.WeakSet[PreTrainedModel] = weakref.WeakSet()

    def loop(
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Tensor | BestOfNOutput:
        check_decoder("best_of_n", model)
        n = generation_config.num_return_sequences
        _check(generation_config, n)
        read = layers_to_read(model, config, layers)
        if model not in checked:
            fingerprint.warn_if_other("best_of_n", ranker, model, None, layers, stacklevel=2)
            checked.add(model)
        scorer = prepare(model.device)

        plain = copy.copy(generation_config)
        plain.return_dict_in_generate = False
        plain.pad_token_id = _pad(generation_config)
        mask = model_kwargs.get("attention_mask")
        mask = torch.ones_like(input_ids) if mask is None else mask
        mask = _whole_prompts(input_ids, mask, model_kwargs)
        check_unpadded("best_of_n", model, read, input_ids, mask)
        new = generation_config.max_length - input_ids.shape[1]
        check_positions("best_of_n", model, int(mask.sum(1).max()) + new - 1)
        pooling, gate = scorer.config.pooling, scorer.gate
        if (plain.num_beams or 1) > 1:
            search = functools.partial(beams.search, op="best_of_n", layers=read, pooling=pooling, gate=gate)
            made = search(model, input_ids, logits_processor, stopping_criteria, plain, **model_kwargs)
        else:
            with Capture(read, mask[::n], n, pooling, gate) as capture:
                criteria = _watched(stopping_criteria, capture)
                sample = functools.partial(decoding.sample, n=n, capture=capture, ks=states_to_read(model, config))
                sequences = sample(model, input_ids, logits_processor, criteria, plain, **model_kwargs)
            made = capture.generated(sequences)
        out = scorer(made.inst.to(model.device), made.resp.to(model.device))
        safety = None if calibration is None else reference.calibrate(out.scores, *calibration).view(-1, n)
        lengths = made.lengths.view(-1, n)
        chosen = _chosen(made.sequences, input_ids.shape[1], lengths, out.best, plain.pad_token_id)
        if not generation_config.return_dict_in_generate:
            return chosen
        scores = out.scores.view(-1, n)
        return BestOfNOutput(
            sequences=chosen,
            best=out.best,
            best_score=scores.amax(1),
            candidate_scores=scores,
            candidate_probs=out.probs.view(-1, n),
            candidate_safety=safety,
            candidate_lengths=lengths,
            candidate_sequences=made.sequences.view(len(chosen), n, -1),
        )

    return loop


def _check(config: GenerationConfig, n: int) -> None:
    for name, (served, instead) in SERVED.items():
        if getattr(config, name, None) not in served:
            raise ValueError(f"best_of_n: {name}={getattr(config, name)!r} cannot be served: {instead}")
    for name in OUTPUTS:
        if getattr(config, name):
            raise ValueError(f"best_of_n: {name} cannot be served: the answer is a BestOfNOutput")
    if n < 2:
        raise ValueError(f"best_of_n: num_return_sequences is the number of candidates, at least 2; got {n}")


def _whole_prompts(input_ids: Tensor, mask: Tensor, model_kwargs: Mapping[str, Any]) -> Tensor:
    """The mask in int64, of prompts from their first token to their last: where they are, their states are pooled."""
    cache = model_kwargs.get(cache_argument.GENERATE)
    if cache is not None and cache.get_seq_length() > 0:
        raise ValueError(f"best_of_n: {cache_argument.GENERATE} cannot be served: the prompt's own states are needed")
    if mask.shape != input_ids.shape:  # as generate makes it of inputs_embeds alone
        raise ValueError(
            f"best_of_n: input_ids must be given, one for each of attention_mask {list(mask.shape)}, got "
            f"{list(input_ids.shape)}; inputs_embeds alone cannot be served"
        )
    return left_padded("best_of_n", mask)


def _watched(criteria: StoppingCriteriaList, capture: Capture) -> StoppingCriteriaList:
    """The same criteria, told to the capture; ``generate`` looks for those of EOS and length in the list itself."""
    own = [c for c in criteria if hasattr(c, "eos_token_id") or isinstance(c, MaxLengthCriteria)]
    others = StoppingCriteriaList(c for c in criteria if c not in own)
    eos = [int(token) for c in own if hasattr(c, "eos_token_id") for token in c.eos_token_id]
    return StoppingCriteriaList([*capture.stopping_criteria(eos, others), *own])


def _chosen(sequences: Tensor, P: int, lengths: Tensor, best: Tensor, pad: int) -> Tensor:
    """[B, P + T] the best rows, cut to the longest; only padding after the prompt where best is -1."""
    B, n = lengths.shape
    rows = torch.arange(B, device=best.device) * n + best.clamp(min=0)
    kept = lengths.reshape(-1)[rows].masked_fill(best < 0, 0)
    chosen = sequences[rows, : P + int(kept.max())]
    after = torch.arange(chosen.shape[1], device=chosen.device) >= P + kept[:, None]
    return chosen.masked_fill(after, pad)


def _pad(config: GenerationConfig) -> int:
    """As ``generate`` chooses it: the first EOS id where there is no pad id."""
    if config.pad_token_id is not None:
        return config.pad_token_id
    return next(iter(eos_ids(config.eos_token_id)), 0)
