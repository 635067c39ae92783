# SPDX-License-Identifier: Apache-2.0
"""Calls of BestOfN on padded prompts, and what they must give, from states computed the slow way."""

from __future__ import annotations

import torch

from srr_fast import reference
from srr_fast.config import RankerConfig
from srr_fast.generation import BestOfN
from srr_fast.ranker import SafetyRanker

from .tiny_models import WIDTH, block_outputs, tiny

EOS = list(range(20))
N = 5
IDS = torch.randint(20, 60, (3, 7), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(7) >= torch.tensor([0, 3, 6])[:, None]).long()
PADDED = {"input_ids": IDS, "attention_mask": MASK}


def make_ranker(**options) -> SafetyRanker:
    torch.manual_seed(1)
    calibration = options.pop("calibration", None)
    config = RankerConfig(WIDTH, **({"layer": 2, "proj_dim": 8} | options))
    return SafetyRanker(config, calibration=calibration).eval()


def alone(model, ranker, prompt: list[int], response: list[int], eos=EOS):
    """Pooled prompt and response [d] from one forward of the sequence, unpadded."""
    end = len(response) - 1  # the last one is EOS, or has no state
    assert not any(token in eos for token in response[:-1])
    layers = ranker.config.layer_indices(model.config.num_hidden_layers)
    read = block_outputs(model, torch.tensor(prompt + response), layers)
    spans = torch.tensor([[0, len(prompt)], [len(prompt), len(prompt) + end]])
    gate = ranker.gate_vector()
    return reference.pool(read, spans, ranker.config.pooling, None if gate is None else gate.detach())


def check(bon, model, ranker, results, ids=IDS, mask=MASK, eos=EOS, n=N):
    for row, result in enumerate(results):
        prompt = ids[row][mask[row] == 1].tolist()
        pooled = [alone(model, ranker, prompt, c.token_ids, eos) for c in result.candidates]
        with torch.no_grad():
            want = ranker.score(pooled[0][:1], torch.stack([p[1] for p in pooled]))
        assert len(result.candidates) == n
        got = torch.tensor([c.score for c in result.candidates])
        torch.testing.assert_close(got, want.scores, atol=2e-5, rtol=0)
        torch.testing.assert_close(torch.tensor([c.prob for c in result.candidates]), want.probs, atol=2e-4, rtol=0)
        best = max(range(n), key=lambda i: got[i])
        if got[best] == float("-inf"):
            assert result.index is None and result.abstained and result.token_ids == []
        else:
            chosen = result.candidates[best]
            assert (result.index, result.token_ids, result.score) == (best, chosen.token_ids, chosen.score)
        assert all(c.n_tokens == len(c.token_ids) for c in result.candidates)


def run(name="llama", prompts=PADDED, n=N, ranker=None, seed=0, **options):
    model, ranker = tiny(name), ranker or make_ranker()
    bon = BestOfN(model, None, ranker)
    torch.manual_seed(seed)
    options = {"max_new_tokens": 8, "top_k": 0, "eos_token_id": EOS, "pad_token_id": 0} | options
    return bon, model, ranker, bon.generate(prompts, n, **options)
