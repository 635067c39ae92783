# SPDX-License-Identifier: Apache-2.0
"""A list has the same bits in any company: batch size, place, neighbours, threads, runs, way of calling."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor

import srr_fast
from srr_fast import PreparedScorer, ScoreOutput, _native
from srr_fast.reference import POOLINGS, SCOPES

from ..cases import STATE_DTYPES, ScoreCase
from .row import Row

BATCHES = (1, 2, 3, 7, 8, 17, 31, 32, 33, 64, 255, 256, 300, 511)
THREADS = (1, 2, 4)
SIZES = (0, 1, 2, 3, 5, 8, 17, 33)
CASES = [
    ScoreCase("list", (), 96, {"proj_dim": 48, "num_heads": 3}),
    ScoreCase("list, two K-slices", (), 2100),
    ScoreCase("list, pre-LN, gated", (), 40, {"num_layers": 2, "norm_first": True, "pooling": "gated"}),
    ScoreCase("pair", (), 96, {"scope": "pair", "pooling": "last"}),
    ScoreCase("pair, two K-slices", (), 2100, {"scope": "pair", "num_heads": 4}),
]
DTYPES = (torch.float32, torch.bfloat16)


def isas() -> list[str]:
    return _native.extension.build_info()["cpu_isas"] if _native.extension else ["reference"]


def use(isa: str, threads: int = 1) -> None:
    torch.set_num_threads(threads)
    if _native.extension:
        _native.extension.select_cpu_isa(isa)


def same(got: ScoreOutput, want: ScoreOutput) -> bool:
    """To the bit: -0.0 is not 0.0."""
    bits = [(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(got[:2], want[:2], strict=True)]
    return all(torch.equal(a, b) for a, b in [*bits, (got.best, want.best)])


class Batch:
    """B random lists with one, the needle, at a place among them.

    hostile: one row in eight of the others is NaN, infinite or enormous.
    """

    def __init__(self, rng: random.Random, B: int, d: int, *, place: int | None = None, hostile: bool = True) -> None:
        generator = torch.Generator().manual_seed(rng.getrandbits(60))
        self.place = rng.randrange(B) if place is None else place
        sizes = [rng.choice(SIZES) for _ in range(B)]
        sizes[self.place] = rng.choice(SIZES[1:])
        ends = torch.tensor([0, *sizes]).cumsum(0)
        self.offsets, self.mine = ends, slice(int(ends[self.place]), int(ends[self.place + 1]))
        self.inst = torch.randn(B, d, generator=generator)
        self.resp = torch.randn(sum(sizes), d, generator=generator)
        if hostile:
            for rows, keep in ((self.inst, slice(self.place, self.place + 1)), (self.resp, self.mine)):
                kept = rows[keep].clone()
                bad = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38])
                hit = torch.randint(8, (len(rows),), generator=generator) == 0
                column = torch.randint(d, (len(rows),), generator=generator)
                rows[hit, column[hit]] = bad[torch.randint(4, (int(hit.sum()),), generator=generator)]
                rows[keep] = kept

    def to(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        return self.inst.to(dtype), self.resp.to(dtype), self.offsets

    def alone(self, inst: Tensor, resp: Tensor) -> tuple[Tensor, Tensor]:
        return inst[self.place : self.place + 1].clone(), resp[self.mine].clone()

    def needle(self, out: ScoreOutput) -> ScoreOutput:
        return ScoreOutput(out.scores[self.mine], out.probs[self.mine], out.best[self.place : self.place + 1])


def into_out(scorer: PreparedScorer, inst: Tensor, resp: Tensor, offsets: Tensor) -> ScoreOutput:
    M, B = len(resp), len(inst)
    out = ScoreOutput(torch.full((M,), 9.0), torch.full((M,), 9.0), torch.full((B,), 9))
    return scorer(inst, resp, offsets, out=out)


WAYS: tuple[Callable[..., ScoreOutput], ...] = (
    lambda scorer, *inputs: scorer(*inputs),
    lambda scorer, inst, resp, offsets: srr_fast.score(inst, resp, scorer, offsets),
    into_out,
)


def compositions(scorer: PreparedScorer, dtype: torch.dtype, isa: str, batches: tuple[int, ...]) -> Iterator[bool]:
    """Whether the needle has its bits: every batch size, first, middle and last, tame and hostile, any threads."""
    rng, d = random.Random(0), scorer.config.state_size
    for B, hostile in product(batches, (False, True)):
        for place in sorted({0, B // 2, B - 1}):
            batch = Batch(rng, B, d, place=place, hostile=hostile)
            inputs = batch.to(dtype)
            use(isa)
            want = scorer(*batch.alone(*inputs[:2]))
            for threads in THREADS:
                use(isa, threads)
                yield same(batch.needle(scorer(*inputs)), want)


def needles(scorer: PreparedScorer, dtype: torch.dtype, isa: str, trials: int) -> Iterator[bool]:
    """Whether a random list, at a random place of a random batch, called in a random way, equals the list alone."""
    rng = random.Random(1)
    for _ in range(trials):
        batch = Batch(rng, rng.randint(1, 40), scorer.config.state_size)
        inputs = batch.to(dtype)
        use(isa, rng.choice(THREADS))
        want = scorer(*batch.alone(*inputs[:2]))
        use(isa, rng.choice(THREADS))
        yield same(batch.needle(rng.choice(WAYS)(scorer, *inputs)), want)


def absences(scorer: PreparedScorer, dtype: torch.dtype, isa: str, trials: int) -> Iterator[bool]:
    """Whether candidates of the list itself that are out leave the others the bits of the list without them."""
    rng = random.Random(5)
    for _ in range(trials):
        batch = Batch(rng, rng.randint(1, 9), scorer.config.state_size)
        inst, resp, offsets = batch.to(dtype)
        mine = torch.arange(batch.mine.start, batch.mine.stop)
        out = torch.tensor([rng.random() < 0.3 for _ in mine])
        out[rng.randrange(len(mine))] = False
        bad = mine[out]
        resp[bad, rng.randrange(resp.shape[1])] = rng.choice((float("nan"), float("inf"), -float("inf")))
        use(isa, rng.choice(THREADS))
        want = scorer(inst[batch.place : batch.place + 1].clone(), resp[mine[~out]])
        got = scorer(inst, resp, offsets)
        kept = ScoreOutput(got.scores[mine[~out]], got.probs[mine[~out]], want.best)
        gone = bool((got.scores[bad] == -float("inf")).all() and (got.probs[bad] == 0).all())
        yield same(kept, want) and gone and got.best[batch.place] == (~out).nonzero()[want.best, 0]


def runs(scorer: PreparedScorer, dtype: torch.dtype, isa: str, count: int) -> Iterator[bool]:
    """Whether a batch has its bits on every run, whatever ran in between."""
    rng = random.Random(2)
    batch, other = (Batch(rng, B, scorer.config.state_size).to(dtype) for B in (33, 8))
    use(isa)
    want = scorer(*batch)
    for run in range(count):
        use(isa, THREADS[run % len(THREADS)])
        scorer(*other)
        yield same(scorer(*batch), want)


def pooled_needles(pooling: str, dtype: torch.dtype, isa: str, trials: int) -> Iterator[bool]:
    """Whether a candidate's tokens pool to the same bits alone, within padding among others, and packed."""
    rng = random.Random(3)
    for _ in range(trials):
        generator = torch.Generator().manual_seed(rng.getrandbits(60))
        d, count = rng.choice((7, 96, 2100)), rng.randint(1, 40)
        tokens = torch.randn(count, d, generator=generator).to(dtype)
        gate = torch.randn(d + 1, generator=generator) if pooling == "gated" else None
        M, before, after = rng.randint(1, 12), rng.randint(0, 9), rng.randint(0, 9)
        place, T = rng.randrange(M), before + count + after
        padded = torch.randn(M, T, d, generator=generator).to(dtype)
        padded[rng.randrange(M), rng.randrange(T)] = rng.choice((float("nan"), float("inf"), 1e38))
        padded[place] = float("nan")
        padded[place, before : before + count] = tokens
        spans = torch.tensor([[0, rng.randint(0, T)] for _ in range(M)])
        spans[place] = torch.tensor([before, before + count])
        use(isa)
        want = srr_fast.pool(tokens[None], torch.tensor([[0, count]]), pooling=pooling, gate=gate)[0]
        use(isa, rng.choice(THREADS))
        got = srr_fast.pool(padded, spans, pooling=pooling, gate=gate)[place]
        packed = padded.reshape(M * T, d)
        again = srr_fast.pool(packed, spans + T * torch.arange(M)[:, None], pooling=pooling, gate=gate)[place]
        yield torch.equal(got.view(torch.int32), want.view(torch.int32)) and torch.equal(
            again.view(torch.int32), want.view(torch.int32)
        )


def prepared(case: ScoreCase, dtype: torch.dtype) -> PreparedScorer:
    return case.build().prepare(dtype=dtype)


def verdict(check: str, found: list[bool]) -> Row:
    figure = f"{len(found) - sum(found):,} of {len(found):,} differ ({', '.join(isas())})"
    return Row(check, figure, "0 differ", bool(found) and all(found))


def check_native() -> Iterator[Row]:
    if _native.extension is None:
        yield Row("bits on the native path", f"not run: {_native.missing_reason}", "0 differ", False)
        return

    def all_of(scope: str, test: Callable[..., Iterator[bool]], *arguments: object) -> list[bool]:
        cases = [case for case in CASES if case.config.scope == scope]
        every = product(cases, DTYPES, isas())
        return [bool(ok) for case, dtype, isa in every for ok in test(prepared(case, dtype), dtype, isa, *arguments)]

    for scope in SCOPES:
        where = f"{len(BATCHES)} batch sizes to {BATCHES[-1]}, 3 places, NaN and Inf neighbours, {THREADS} threads"
        yield verdict(f"{scope}, fp32 and bf16: {where}", all_of(scope, compositions, BATCHES))
        yield verdict(f"{scope}: needle trials, called in 3 ways", all_of(scope, needles, 500))
        yield verdict(f"{scope}: candidates that are out are as if absent", all_of(scope, absences, 100))
        yield verdict(f"{scope}: 100 runs each, at {THREADS} threads in turn", all_of(scope, runs, 100))
    every = product(isas(), STATE_DTYPES, POOLINGS)
    found = [ok for isa, dtype, pooling in every for ok in pooled_needles(pooling, dtype, isa, 500)]
    yield verdict("pooling: needle trials, padded and packed", found)


def check_reference() -> Iterator[Row]:
    """The fallback promises values, not bits, and says so."""
    worst = 0.0
    for case in CASES:
        ranker, rng = case.build(), random.Random(4)
        for B in BATCHES[:10]:
            batch = Batch(rng, B, case.d)
            inst, resp, offsets = batch.to(torch.float32)
            with torch.no_grad():
                got = batch.needle(ranker.score(inst, resp, offsets)).scores
                want = ranker.score(*batch.alone(inst, resp)).scores
            worst = max(worst, float((got - want).abs().max()))
    yield Row("SRR_FAST_BACKEND=reference, values in any batch", f"{worst:.1e} apart at most", "1e-6", worst <= 1e-6)
    text = " ".join((PreparedScorer.__doc__ or "").split())
    says = "the reference promises values, not bits" in text
    yield Row("SRR_FAST_BACKEND=reference, what it promises", "says so" if says else "silent", "says so", says)
