# SPDX-License-Identifier: Apache-2.0
"""One list of last-token states, d = 4096, p = 64, scored natively and by the rivals; equal results first."""

import statistics

import pytest
import torch

from srr_fast import RankerConfig, SafetyRanker, _native
from tests.cases import ScoreCase

from .interleave import interleave, summary
from .rivals import rivals

pytestmark = pytest.mark.skipif(_native.extension is None, reason=f"no native extension: {_native.missing_reason}")


@pytest.fixture(scope="module")
def ranker():
    torch.manual_seed(0)
    return SafetyRanker(RankerConfig(4096, proj_dim=64, pooling="last")).eval()


@pytest.fixture(scope="module")
def others(ranker):
    return rivals(ranker)


@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("N", [8, 16, 64, 256])
def bench_score(benchmark, compare, ranker, others, N, threads, cold):
    scorer, half = ranker.prepare(), ranker.prepare(dtype=torch.bfloat16)
    inst, resp, _ = ScoreCase("", (N,), 4096).inputs()
    inst16, resp16 = inst.bfloat16(), resp.bfloat16()
    with torch.no_grad():
        exact = ranker.double().score(inst.double(), resp.double()).scores
        ranker.float()
    out, out16 = scorer(inst, resp), half(inst16, resp16)
    for name, rival in others.items():
        torch.testing.assert_close(rival(inst, resp)[0].double(), exact, rtol=0, atol=1e-5, msg=name)
    torch.testing.assert_close(out.scores.double(), exact, rtol=0, atol=1e-5)
    calls = {
        "native": lambda: scorer(inst, resp, out=out),
        "native bf16": lambda: half(inst16, resp16, out=out16),
        **{name: (lambda rival=rival: rival(inst, resp)) for name, rival in others.items()},
    }
    times = interleave(calls, rounds=60 if cold else 400, cold=cold)
    compare(f"N = {N}, {threads} thread{'s' * (threads > 1)}, {'cold' if cold else 'warm'}", summary(times, "native"))
    benchmark.pedantic(calls["native"], rounds=50, warmup_rounds=5)


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
def bench_ceiling(benchmark, ranker, threads):
    """The rate of a long list beside that of a large square product: what is left to gain in float32."""
    N, d, p, side = 256, 4096, 64, 1024
    scorer, (inst, resp, _) = ranker.prepare(), ScoreCase("", (N,), d).inputs()
    out, left, right = scorer(inst, resp), torch.randn(side, side), torch.randn(side, side)
    flop = {
        "native": (N + 1) * (2 * d * p + 24 * p * p) + 4 * (N + 1) ** 2 * p,
        "torch.mm": 2 * side**3,
    }
    calls = {"native": lambda: scorer(inst, resp, out=out), "torch.mm": lambda: torch.mm(left, right)}
    times = interleave(calls, rounds=60)
    rates = {name: flop[name] / statistics.median(seconds) / 1e9 for name, seconds in times.items()}
    benchmark.extra_info["gflops"] = rates
    print(f"\nGFLOP/s, {threads} threads: " + ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items()))
    benchmark.pedantic(calls["native"], rounds=20)
