# SPDX-License-Identifier: Apache-2.0
"""What best-of-N answers with, whatever engine sampled: candidates, the one chosen, how long it took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .ranker import Calibration


class Candidate(NamedTuple):
    """One sampled response.

    text: decoded without special tokens; None without a tokenizer.
    token_ids: generated ids up to and including the one that ended the response (EOS); n_tokens: their number.
    score: cosine to the prompt, -inf when the candidate is out (nothing to pool, or pruned). prob: softmax over the
    candidates. safety: calibrated score in [0, 1]; None for a ranker without calibration.
    pruned: ended early by ``prune=``; its text and tokens are what there was by then.
    """

    text: str | None
    token_ids: list[int]
    score: float
    prob: float
    safety: float | None
    n_tokens: int
    pruned: bool = False


class Timings(NamedTuple):
    """Seconds of one ``BestOfN.generate`` call, all its prompts together, on the host's clock.

    generate_s: sampling, with the capture and the pruning in it. capture_s: inside the hooks; with beams, the second
    reading of the answers. rank_s: scoring and reading the result. n_tokens: tokens generated.
    """

    generate_s: float
    capture_s: float
    rank_s: float
    n_tokens: int


@dataclass(frozen=True)
class BestOfNResult:
    """The chosen candidate of one prompt.

    index: its place in ``candidates``, which are in the order they were sampled; text ... safety: as in
    :class:`Candidate`. abstained: why nothing was chosen, None when something was; then text is the ``fallback``,
    token_ids is empty and index, score, prob and safety are None.
    """

    text: str | None
    token_ids: list[int]
    index: int | None
    score: float | None
    prob: float | None
    safety: float | None
    candidates: list[Candidate]
    abstained: str | None
    timings: Timings


def choose(
    candidates: list[Candidate], best: int, min_safety: float | None, fallback: str | None, timings: Timings
) -> BestOfNResult:
    """The result with the candidate at ``best``; with none where that is -1, or its safety below ``min_safety``."""
    why = None
    if best < 0:
        why = "every candidate is out: no token to pool, or a state that is not finite"
    elif min_safety is not None and (safety := candidates[best].safety) is not None and safety < min_safety:
        why = f"the best safety {safety:.4f} is below min_safety={min_safety}"
    if why is not None:
        return BestOfNResult(fallback, [], None, None, None, None, candidates, why, timings)
    one = candidates[best]
    return BestOfNResult(one.text, one.token_ids, best, one.score, one.prob, one.safety, candidates, None, timings)


def check_min_safety(op: str, min_safety: float | None, calibration: Calibration | None) -> None:
    """Raise TypeError or ValueError, its message starting with ``op``, for what no result could be held to."""
    if min_safety is None:
        return
    if isinstance(min_safety, bool) or not isinstance(min_safety, int | float):
        raise TypeError(f"{op}: min_safety must be a number in [0, 1], got {min_safety!r}")
    if not 0 <= min_safety <= 1:
        raise ValueError(f"{op}: min_safety must be in [0, 1], got {min_safety}")
    if calibration is None:
        raise ValueError(f"{op}: min_safety wants a ranker with calibration, this one has none")
