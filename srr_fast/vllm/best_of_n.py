# SPDX-License-Identifier: Apache-2.0
"""Best-of-N with vLLM in one program: a sampler and a reader, each a ``vllm.LLM``. See :mod:`srr_fast.vllm.recipe`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from .. import fingerprint, prompts
from ..ranker import SafetyRanker
from ..results import BestOfNResult, Timings, check_min_safety
from . import recipe, version


class VllmBestOfN:
    """:class:`srr_fast.BestOfN` with vLLM as the engine. model, ranker: hub ids or folders.

    sampler, reader: options of the two ``vllm.LLM``, both with those in ``options``, for instance each one's share of
    the memory. Warns when the ranker was trained with another tokenizer or chat template; the weights, in other
    processes, are not compared.

    Raises ImportError for another version of vLLM than those that were tried, ValueError for a ranker of another width.
    """

    def __init__(
        self,
        model: str,
        ranker: str,
        *,
        sampler: dict[str, Any] | None = None,
        reader: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        version.check()
        from vllm import LLM

        scorer = SafetyRanker.from_pretrained(ranker)
        self.calibration = scorer.calibration
        reads = recipe.reader_options(model, ranker)
        self.sampler = LLM(model, **options, **(sampler or {}))
        self.reader = LLM(model, **options, **reads, **(reader or {}))
        self.tokenizer: Any = self.sampler.get_tokenizer()
        fingerprint.warn_if_other("VllmBestOfN", scorer, None, self.tokenizer, stacklevel=2)

    def generate(
        self,
        asked: str | Sequence[Any],
        n: int = 16,
        *,
        min_safety: float | None = None,
        fallback: str | None = None,
        **sampling: Any,
    ) -> list[BestOfNResult]:
        """The safest of n sampled responses to each prompt: a string, or a list of strings and conversations.

        sampling: for ``vllm.SamplingParams``. min_safety, fallback and the results: as for ``BestOfN.generate``.
        """
        from vllm import SamplingParams

        check_min_safety("VllmBestOfN", min_safety, self.calibration)
        listed = [asked] if isinstance(asked, str) else list(asked)
        ids = [prompts.encode("VllmBestOfN", self.tokenizer, prompt) for prompt in listed]
        start = time.perf_counter()
        requests: list[Any] = [{"prompt_token_ids": row} for row in ids]
        outputs = self.sampler.generate(requests, SamplingParams(n=n, **sampling), use_tqdm=False)
        drawn = [
            [(one.text, one.token_ids) for one in sorted(output.outputs, key=lambda one: one.index)]
            for output in outputs
        ]
        sampled = time.perf_counter()
        ranked = self.rank(ids, [[recipe.pooled_tokens(tokens) for _, tokens in row] for row in drawn])
        count = sum(len(tokens) for row in drawn for _, tokens in row)
        timings = Timings(sampled - start, 0.0, time.perf_counter() - sampled, count)
        return recipe.results(drawn, ranked, self.calibration, min_safety, fallback, timings)

    def rank(
        self, instructions: Sequence[recipe.Ids], responses: Sequence[Sequence[recipe.Ids]]
    ) -> list[list[tuple[float, float]]]:
        """Score and probability of each response to each instruction, all token ids; -inf and 0 for an empty one."""
        made = recipe.readings(instructions, responses)
        self.reader.generate(made.prompts, made.options, use_tqdm=False)
        end = time.monotonic() + recipe.LONGEST_WAIT_S
        while time.monotonic() < end:
            found = self.reader.collective_rpc(recipe.RANK, args=(made.keys,))[0]
            if found is not None:
                return [[(score, prob) for score, prob in row] for row in found]
            time.sleep(recipe.WAIT_S)
        raise RuntimeError(f"VllmBestOfN: states of {len(made.prompts)} requests did not come")
