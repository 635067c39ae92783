# SPDX-License-Identifier: Apache-2.0
"""Best-of-N on transformers' continuous batching. Experimental: made for some minor versions of transformers.

Its forwards pack tokens of many requests and give out no states, so the answers are read once more, as with beams.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from .capture import Generated
from .forced import pool_generated
from .generate_options import Options
from .generation import BestOfN
from .pruning import Schedule
from .ranker import SafetyRanker

TESTED = ("5.23", "5.24")  # of transformers
SERVED = ("do_sample", "eos_token_id", "max_new_tokens", "temperature", "top_k", "top_p")


def tried(version: str) -> bool:
    """Whether this was tried with that version of transformers."""
    return ".".join(version.split(".")[:2]) in TESTED


class ContinuousBestOfN(BestOfN):
    """:class:`BestOfN` through ``model.generate_batch``: prompts and candidates of any length share the forwards.

    batching: transformers' ``ContinuousBatchingConfig``; where None, it takes what memory it finds.

    ``generate`` takes of the options of ``model.generate`` those in ``SERVED``, ``max_new_tokens`` among them always,
    and no ``prune``; what else the model's own generation config says is up to transformers. Samples are those of
    ``generate_batch``: its config has the seed. ``Timings.capture_s`` is the second reading, to the deepest layer read.
    Raises ImportError for a version of transformers that this was not tried with.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        ranker: SafetyRanker,
        *,
        layers: Sequence[nn.Module] | None = None,
        batching: Any = None,
    ) -> None:
        if not tried(transformers.__version__):
            raise ImportError(
                f"ContinuousBestOfN: wants transformers {' or '.join(TESTED)}, got {transformers.__version__}; "
                "BestOfN serves every version, and ranker.rank the answers of any engine"
            )
        super().__init__(model, tokenizer, ranker, layers=layers)
        self.batching = batching

    def _sample(
        self, ids: Tensor, mask: Tensor, n: int, schedule: Schedule, options: Options
    ) -> tuple[Generated, Tensor]:
        if schedule:
            raise ValueError("ContinuousBestOfN: prune cannot be served; leave it out")
        for name in options.given:
            if name not in SERVED:
                raise ValueError(f"ContinuousBestOfN: {name} cannot be served; it takes {', '.join(SERVED)}")
        if options["max_new_tokens"] is None:
            raise ValueError("ContinuousBestOfN: wants max_new_tokens=")
        config = GenerationConfig.from_dict(self.model.generation_config.to_dict() | options.for_generate(n))
        prompts = [row[real].tolist() for row, real in zip(ids, mask.bool(), strict=True)]
        generate_batch = cast("Any", self.model).generate_batch
        outputs = generate_batch(prompts, generation_config=config, continuous_batching_config=self.batching).values()
        errors = [output.error for output in outputs if output.error]
        # All candidates of one prompt, then of the next.
        if errors or [output.prompt_ids for output in outputs] != [p for p in prompts for _ in range(n)]:
            raise RuntimeError(f"ContinuousBestOfN: {len(outputs)} of {len(prompts) * n} answers came: {errors}")
        rows = [list(output.generated_tokens) for output in outputs]

        start = time.perf_counter()
        pooling, gate = self.scorer.config.pooling, self.scorer.gate
        inst, resp = pool_generated(self.model, self.layers, prompts, rows, pooling=pooling, gate=gate)
        seconds = time.perf_counter() - start
        T = max(map(len, rows))
        padded = torch.tensor([row + [0] * (T - len(row)) for row in rows], device=ids.device)
        sequences = torch.cat([ids.repeat_interleave(n, 0), padded], 1)
        lengths = torch.tensor([len(row) for row in rows], device=ids.device)
        return Generated(sequences, lengths, inst, resp, seconds), torch.zeros_like(lengths, dtype=torch.bool)
