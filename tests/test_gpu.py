# SPDX-License-Identifier: Apache-2.0
"""The native ops on a GPU: within the error budget, and what they promise about bits, streams, graphs and memory."""

from contextlib import contextmanager

import pytest
import torch

import srr_fast
from srr_fast import _native, reference
from srr_fast.capture import Capture

from .cases import POOL_CASES, SCORE_CASES, STATE_DTYPES, ScoreCase
from .numerics import POOL_FLOOR, PROB_FLOOR, SCORE_FLOOR, assert_same_order, assert_within_budget

if not torch.cuda.is_available():
    MISSING = "no CUDA device"
elif "cuda" not in _native.devices:
    MISSING = f"no CUDA kernels: {_native.missing_reason or 'the extension was built without them'}"
else:
    MISSING = ""
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(MISSING), reason=MISSING)]
RAGGED = (1, 5, 33, 0, 2, 64, 7, 90) * 3


def on_gpu(tensors, device="cuda"):
    return [t.to(device) for t in tensors]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def captured(call):
    """A graph of one call, and what the call returned while it was captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph, result


@contextmanager
def no_waiting():
    """Whatever makes the host wait for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", STATE_DTYPES, ids=str)
@pytest.mark.parametrize("case", SCORE_CASES, ids=lambda c: c.name)
def test_score_within_the_error_budget(case, dtype, weights):
    ranker = case.build()
    scorer = ranker.prepare("cuda", weights)
    if weights == torch.bfloat16:
        ranker.load_state_dict({name: value.cpu() for name, value in scorer.weights.items()})
    inst, resp, offsets = case.inputs(dtype=dtype)
    with torch.no_grad():
        plain = ranker.score(inst.float(), resp.float(), offsets)
        exact = ranker.double().score(inst.double(), resp.double(), offsets)
    got = srr_fast.ScoreOutput(*(t.cpu() for t in scorer(*on_gpu((inst, resp, offsets)))))
    assert_within_budget(got.scores, exact.scores, plain.scores, SCORE_FLOOR)
    assert_within_budget(got.probs, exact.probs, plain.probs, PROB_FLOOR * 0.1 / case.config.temperature)
    for b in range(len(case.sizes)):
        mine = slice(int(offsets[b]), int(offsets[b + 1]))
        assert_same_order(got.scores[mine], exact.scores[mine], 1e-5)


@pytest.mark.parametrize("dtype", STATE_DTYPES, ids=str)
@pytest.mark.parametrize("pooling", reference.POOLINGS)
@pytest.mark.parametrize("name", POOL_CASES)
def test_pool_within_the_error_budget(name, pooling, dtype):
    M, T, d, spans = POOL_CASES[name]
    states = torch.randn(M, T, d, generator=torch.Generator().manual_seed(0)).to(dtype)
    spans = torch.tensor(spans, dtype=torch.int64).view(M, 2)
    gate = torch.randn(d + 1, generator=torch.Generator().manual_seed(9)) * 0.3 if pooling == "gated" else None
    exact = reference.pool(states.double(), spans, pooling, None if gate is None else gate.double())
    plain = reference.pool(states.float(), spans, pooling, gate)
    gate = None if gate is None else gate.cuda()
    got = srr_fast.pool(*on_gpu((states, spans)), pooling=pooling, gate=gate).cpu()
    assert_within_budget(got, exact, plain, POOL_FLOOR * (states.abs().max().item() if states.numel() else 1.0))


@pytest.mark.parametrize("scope", ["list", "pair"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_list_has_the_same_bits_in_any_batch(scope, dtype):
    case = ScoreCase("", RAGGED, 2100, {"scope": scope})
    inst, resp, offsets = on_gpu(case.inputs(dtype=dtype))
    resp[3] = float("nan")
    scorer = case.build().prepare("cuda", dtype)
    together = scorer(inst, resp, offsets)
    for b, (begin, end) in enumerate(zip(offsets.tolist(), offsets.tolist()[1:], strict=False)):
        alone = scorer(inst[b : b + 1], resp[begin:end], torch.tensor([0, end - begin], device="cuda"))
        assert torch.equal(alone.scores, together.scores[begin:end])
        assert torch.equal(alone.probs, together.probs[begin:end])
        assert alone.best[0] == together.best[b]


@pytest.mark.parametrize("sizes", [(16,), (16,) * 64, (300,), (8,) * 3000], ids=["one", "many", "long", "thousands"])
def test_a_hundred_runs_have_equal_bits(sizes):
    case = ScoreCase("", sizes, 4096)
    inputs = on_gpu(case.inputs(dtype=torch.bfloat16))
    scorer = case.build().prepare("cuda", torch.bfloat16)
    first = scorer(*inputs)
    assert all(same(first, scorer(*inputs)) for _ in range(100))


def test_rankers_of_different_sizes_take_turns():
    """Each asks for more shared memory than the one before, and the device grants it kernel by kernel."""
    for p in (32, 64, 128, 192, 512, 64):
        case = ScoreCase("", (16,), 256, {"proj_dim": p})
        inputs = on_gpu(case.inputs())
        want = case.build().to("cuda").score(*inputs)
        torch.testing.assert_close(case.build().prepare("cuda")(*inputs).scores, want.scores, atol=1e-4, rtol=0)


def test_from_hidden_is_pool_then_score():
    case = ScoreCase("", (16, 9), 4096)
    inst, _, offsets = on_gpu(case.inputs(dtype=torch.bfloat16))
    states = torch.randn(25, 40, 4096, device="cuda").bfloat16()
    spans = torch.tensor([[0, 40], [2, 3], [5, 5], [1, 9], [0, 4]] * 5, device="cuda")
    for pooling in ("last", "mean"):
        ranker = ScoreCase("", case.sizes, 4096, {"pooling": pooling}).build()
        scorer = ranker.prepare("cuda", torch.bfloat16)
        want = scorer(inst, srr_fast.pool(states, spans, pooling=pooling), offsets)
        assert same(scorer.from_hidden(states, spans, inst, offsets), want)
        assert want.scores[2] == float("-inf")


def test_streams_do_not_disturb_one_another():
    case = ScoreCase("", (16,) * 8, 4096)
    scorer = case.build().prepare("cuda", torch.bfloat16)
    inputs = [on_gpu(case.inputs(seed=i, dtype=torch.bfloat16)) for i in range(8)]
    want = [scorer(*args) for args in inputs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in inputs]
    for _ in range(20):
        got = []
        for stream, args in zip(streams, inputs, strict=True):
            with torch.cuda.stream(stream):
                got.append(scorer(*args))
        torch.cuda.synchronize()
        assert all(same(a, b) for a, b in zip(got, want, strict=True))


def test_nothing_waits_for_the_device():
    case = ScoreCase("", (4, 5), 256)
    scorer = case.build().prepare("cuda")
    inputs = on_gpu(case.inputs())
    states, spans = torch.randn(9, 6, 256, device="cuda"), torch.tensor([[0, 6]] * 9, device="cuda")
    acc, weight = torch.zeros(9, 256, device="cuda"), torch.zeros(9, device="cuda")
    with no_waiting():
        scorer(*inputs)
        scorer.from_hidden(states, spans, inputs[0], inputs[2])
        srr_fast.pool_update_(acc, weight, states, spans)


@pytest.mark.parametrize("sizes", [(16,), (16,) * 64, (256,)], ids=["cluster", "clusters", "grid"])
def test_a_replayed_graph_has_the_bits_of_a_call(sizes):
    case = ScoreCase("", sizes, 4096)
    scorer = case.build().prepare("cuda", torch.bfloat16)
    inst, resp, offsets = on_gpu(case.inputs(dtype=torch.bfloat16))
    graph, out = captured(lambda: scorer(inst, resp, offsets))
    for seed in range(2, 6):
        fresh = on_gpu(case.inputs(seed=seed, dtype=torch.bfloat16))
        inst.copy_(fresh[0])
        resp.copy_(fresh[1])
        graph.replay()
        assert same(out, scorer(*fresh))


def test_the_whole_ranking_step_can_be_captured():
    case = ScoreCase("", (16,), 2048, {"pooling": "mean"})
    scorer = case.build().prepare("cuda", torch.bfloat16)
    inst = case.inputs(dtype=torch.bfloat16)[0].cuda()
    states = torch.randn(16, 50, 2048, device="cuda").bfloat16()
    spans = torch.tensor([[0, 50]] * 16, device="cuda")
    graph, out = captured(lambda: scorer.from_hidden(states, spans, inst))
    states.normal_()
    spans[:, 1] = torch.arange(1, 17, device="cuda")
    graph.replay()
    assert same(out, scorer.from_hidden(states, spans, inst))


@pytest.mark.parametrize("pooling", reference.POOLINGS)
def test_the_capture_step_of_a_generation_can_be_captured(pooling):
    """One decoding step: the states of one new token per row are added to the running pools."""
    d, rows = 256, 6
    gate = torch.randn(d + 1, device="cuda") * 0.1 if pooling == "gated" else None
    capture = Capture([], torch.ones(2, 4, dtype=torch.int64, device="cuda"), 3, pooling, gate)
    running = torch.zeros(rows, d, device="cuda"), torch.zeros(rows, device="cuda")
    states = torch.randn(rows, 1, d, device="cuda")
    graph, _ = captured(lambda: capture._update(running, states, capture.spans))
    for t in running:
        t.zero_()
    tokens = torch.randn(rows, 5, d, device="cuda")
    for t in range(5):
        states.copy_(tokens[:, t : t + 1])
        graph.replay()
    spans = torch.tensor([[0, 5]] * rows, device="cuda")
    want = srr_fast.pool(tokens, spans, pooling=pooling, gate=gate)
    torch.testing.assert_close(running[0] / running[1][:, None], want, rtol=1e-5, atol=1e-6)


def test_reduce_overhead_sees_no_graph_break():
    case = ScoreCase("", (16,), 1024)
    scorer = case.build().prepare("cuda", torch.bfloat16)
    compiled = torch.compile(lambda inst, resp: scorer(inst, resp).scores * 2, mode="reduce-overhead", fullgraph=True)
    inst, resp, _ = on_gpu(case.inputs(dtype=torch.bfloat16))
    for _ in range(4):
        assert torch.equal(compiled(inst, resp), scorer(inst, resp).scores * 2)


def test_bad_offsets_are_answered():
    case = ScoreCase("", (4, 4, 4, 4), 64)
    scorer = case.build().prepare("cuda")
    inst, resp, _ = on_gpu(case.inputs())
    got = scorer(inst, resp, torch.tensor([0, 4, 2, 6, 16], device="cuda"))
    assert (got.best >= 0).tolist() == [True, False, False, True]
    assert got.scores.isinf().tolist() == [False] * 4 + [True] * 2 + [False] * 10


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device, wanted two")
def test_a_second_device():
    case = ScoreCase("", (16, 3), 512)
    inputs = case.inputs()
    want = case.build().prepare("cuda:0")(*on_gpu(inputs, "cuda:0"))
    got = case.build().prepare("cuda:1")(*on_gpu(inputs, "cuda:1"))
    assert all(t.device.index == 1 for t in got)
    assert same(want, on_gpu(got, "cuda:0"))


def test_out_of_memory_is_an_error_and_passes():
    case = ScoreCase("", (16,) * 4, 512)
    scorer = case.build().prepare("cuda")
    inputs = on_gpu(case.inputs())
    want = scorer(*inputs)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_per_process_memory_fraction(1e-9)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            scorer(*inputs)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert torch.cuda.memory_allocated() == before
    assert same(want, scorer(*inputs))


def test_a_model_on_the_gpu_is_ranked_as_on_the_cpu():
    from .tiny_models import WIDTH, fresh

    model = fresh("llama")
    ranker = srr_fast.SafetyRanker(srr_fast.RankerConfig(WIDTH, layer=2)).eval()
    ids = torch.randint(20, 60, (2, 7))
    options = dict(n=1, do_sample=False, max_new_tokens=6, min_new_tokens=6)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    want = srr_fast.BestOfN(model, None, ranker).generate(inputs, **options)
    got = srr_fast.BestOfN(model.cuda(), None, ranker.cuda()).generate(inputs, **options)
    for a, b in zip(got, want, strict=True):
        assert a.token_ids == b.token_ids
        assert a.score == pytest.approx(b.score, abs=1e-3)
