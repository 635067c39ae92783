# SPDX-License-Identifier: Apache-2.0
"""The native ops as citizens of PyTorch: registration, tracing, gradients, threads, processes."""

import io
import multiprocessing
import os
import pickle
import select
import signal
import warnings

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.fx.experimental.proxy_tensor import make_fx

import srr_fast

from .at_once import at_once
from .cases import ScoreCase
from .conftest import native_only

pytestmark = native_only
CASE = ScoreCase("", (3, 0, 5), 40, {"proj_dim": 24, "num_heads": 2})


def calls():
    """One call of every op."""
    scorer = CASE.build().prepare()
    inst, resp, offsets = CASE.inputs()
    states, spans, gate = torch.randn(8, 6, 40), torch.tensor([[0, 6], [1, 3]] * 4), torch.randn(41)
    ops = torch.ops.srr_fast
    return {
        "pool": (ops.pool.default, (states, spans, "mean", None)),
        "pool packed": (ops.pool.default, (states[0], spans, "last", None)),
        "pool gated": (ops.pool.default, (states.bfloat16(), spans, "gated", gate)),
        "pool_update_": (ops.pool_update_.default, (torch.zeros(8, 40), torch.zeros(8), states, spans, "mean", None)),
        "score": (ops.score.default, (inst, resp, offsets, scorer.packed, *scorer.shape)),
        "score equal lists": (ops.score.default, (inst[:2], resp, None, scorer.packed, *scorer.shape)),
        "rank": (ops.rank.default, (states, spans, "mean", None, inst, offsets, scorer.packed, *scorer.shape)),
    }


def test_opcheck():
    for op, args in calls().values():
        torch.library.opcheck(op, args)


def test_one_graph_for_three_batch_sizes():
    scorer = CASE.build().prepare()
    counter = CompileCounter()

    def ranked(states, spans, inst, offsets):
        resp = srr_fast.pool(states, spans, pooling="mean")
        return srr_fast.score(inst, resp, scorer, offsets)

    compiled = torch.compile(ranked, backend=counter, fullgraph=True, dynamic=True)
    for sizes in [(3, 4, 2), (5, 9, 1, 4), (1, 1, 1, 6, 0)]:  # no two dimensions alike at first: they would be tied
        case = ScoreCase("", sizes, 40)
        inst, _, offsets = case.inputs()
        states, spans = torch.randn(sum(sizes), 7, 40), torch.tensor([[1, 6]] * sum(sizes))
        got, want = compiled(states, spans, inst, offsets), ranked(states, spans, inst, offsets)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert counter.frame_count == 1


def test_a_prepared_scorer_compiles():
    scorer = CASE.build().prepare()
    compiled = torch.compile(lambda inst, resp, offsets: scorer(inst, resp, offsets), backend="eager", fullgraph=True)
    inputs = CASE.inputs()
    assert torch.equal(compiled(*inputs).scores, scorer(*inputs).scores)


def test_streaming_pool_compiles_to_one_graph():
    counter = CompileCounter()

    def step(acc, weight, states, spans):
        srr_fast.pool_update_(acc, weight, states, spans)
        return acc / weight[:, None]

    compiled = torch.compile(step, backend=counter, fullgraph=True, dynamic=True)
    for M in (3, 5, 9):
        states, spans = torch.randn(M, 2, 16), torch.tensor([[0, 2]] * M)
        got = compiled(torch.zeros(M, 16), torch.zeros(M), states, spans)
        torch.testing.assert_close(got, states.mean(1))
    assert counter.frame_count == 1


def test_raw_ops_raise_rather_than_lose_a_gradient():
    for name, (op, args) in calls().items():
        tensor = next(i for i, a in enumerate(args) if isinstance(a, torch.Tensor) and a.is_floating_point())
        args = [a.requires_grad_() if i == tensor else a for i, a in enumerate(args)]
        with pytest.raises(ValueError, match="requires a gradient"):
            op(*args)
        if name != "pool_update_":
            with torch.no_grad():
                op(*args)


def test_ops_refuse_a_packed_ranker_of_another_shape():
    scorer = CASE.build().prepare()
    inst, resp, offsets = CASE.inputs()
    with pytest.raises(ValueError, match="score: inst and resp must have the width d that packed was made for"):
        torch.ops.srr_fast.score(inst, resp, offsets, scorer.packed[:-64], *scorer.shape)
    with pytest.raises(ValueError, match="score: heads must divide"):
        torch.ops.srr_fast.score(inst, resp, offsets, scorer.packed, 24, 5, *scorer.shape[2:])
    with pytest.raises(ValueError, match=r"score: p must be in 1 \.\. 512"):
        torch.ops.srr_fast.score(inst, resp, offsets, scorer.packed, 513, *scorer.shape[1:])
    with pytest.raises(ValueError, match="scope must be 'list' or 'pair', got 'all'"):
        torch.ops.srr_fast.score(inst, resp, offsets, scorer.packed, *scorer.shape[:6], "all", 0.1)
    shifted = torch.empty(len(scorer.packed) + 1, dtype=torch.uint8)[1:].copy_(scorer.packed)
    with pytest.raises(ValueError, match="64-byte aligned"):
        torch.ops.srr_fast.score(inst, resp, offsets, shifted, *scorer.shape)


def test_eight_threads_agree_with_one():
    scorer = ScoreCase("", (16,), 512).build().prepare()
    inputs = [ScoreCase("", (n,), 512).inputs(seed=n)[:2] for n in range(1, 9)]
    want = [scorer(*pair).scores.clone() for pair in inputs]
    same = at_once(lambda i: [torch.equal(scorer(*inputs[i]).scores, want[i]) for _ in range(200)], range(8))
    assert all(map(all, same))


def test_a_prepared_scorer_survives_pickling():
    case = ScoreCase("", CASE.sizes, CASE.d, {**CASE.ranker, "pooling": "gated"})
    inst, resp, offsets = case.inputs()
    hidden = (torch.randn(len(resp), 6, case.d), torch.tensor([[0, 6]] * len(resp)), inst, offsets)
    for dtype in (torch.float32, torch.bfloat16):
        scorer = case.build().prepare(dtype=dtype)
        again = pickle.loads(pickle.dumps(scorer))
        assert torch.equal(again(inst, resp, offsets).scores, scorer(inst, resp, offsets).scores)
        assert torch.equal(again.from_hidden(*hidden).scores, scorer.from_hidden(*hidden).scores)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_child_answers(two_threads):
    case = ScoreCase("", (300,), 2048)
    scorer, (inst, resp, _) = case.build().prepare(), case.inputs()
    want = scorer(inst, resp).scores  # the parent has used its threads
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            buffer = io.BytesIO()
            torch.save(scorer(inst, resp).scores, buffer)
            os.write(writer, buffer.getvalue())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answered = select.select([pipe], [], [], 60)[0]
        if not answered:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        answer = pipe.read()
    assert answered, "the forked child hung"
    assert torch.equal(torch.load(io.BytesIO(answer)), want)


def _score_in_child(scorer, inputs, queue):
    queue.put(scorer(*inputs).scores.tolist())


def test_a_spawned_process_answers():
    context = multiprocessing.get_context("spawn")
    scorer, inputs = CASE.build().prepare(), CASE.inputs()
    queue = context.Queue()
    child = context.Process(target=_score_in_child, args=(scorer, inputs, queue))
    child.start()
    assert queue.get(timeout=120) == scorer(*inputs).scores.tolist()
    child.join()


def test_writing_in_place_is_seen_by_autograd():
    scorer, (inst, resp, offsets) = CASE.build().prepare(), CASE.inputs()
    out, weight = scorer(inst, resp, offsets), torch.ones(8, requires_grad=True)
    loss = (weight * out.scores).sum()
    scorer(inst, resp + 1, offsets, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    acc, factor = torch.zeros(8, 40), torch.ones(8, 40, requires_grad=True)
    loss = (factor * acc).sum()
    srr_fast.pool_update_(acc, torch.zeros(8), torch.ones(8, 1, 40), torch.tensor([[0, 1]] * 8))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_forward_gradients_come_from_the_reference():
    ranker = CASE.build()
    inst, resp, offsets = CASE.inputs()
    tangent = torch.randn_like(resp)

    def tangent_of(call):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(resp, tangent)
            return torch.autograd.forward_ad.unpack_dual(call(inst, dual, offsets).scores).tangent

    with torch.no_grad():
        torch.testing.assert_close(tangent_of(ranker.prepare()), tangent_of(ranker.score))


def test_tracing_sees_the_op():
    scorer, (inst, resp, offsets) = CASE.build().prepare(), CASE.inputs()
    graph = make_fx(lambda a, b: scorer(a, b, offsets).scores)(inst, resp)
    assert "srr_fast.score" in graph.code
    assert torch.equal(graph(inst, resp + 1), scorer(inst, resp + 1, offsets).scores)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(lambda a, b: scorer(a, b, offsets).scores, (inst, resp))
    assert torch.equal(traced(inst, resp + 1), scorer(inst, resp + 1, offsets).scores)


def test_tensors_without_storage_are_left_to_the_dispatcher():
    scorer, (inst, resp, offsets) = CASE.build().prepare(), CASE.inputs()
    zeros = torch._efficientzerotensor(tuple(resp.shape))
    assert torch.equal(scorer(inst, zeros, offsets).scores, scorer(inst, torch.zeros_like(resp), offsets).scores)


def test_sizes_that_would_overflow_are_refused():
    scorer = ScoreCase("", (4,), 32, {"num_layers": 0}).build().prepare()
    inst, resp, _ = ScoreCase("", (4,), 32).inputs()
    for place, words in [(2, "layers must be in 0"), (3, "ffn must be in 1")]:
        shape = list(scorer.shape)
        shape[place] = 1 << 58
        with pytest.raises(ValueError, match=f"score: {words}"):
            torch.ops.srr_fast.score(inst, resp, None, scorer.packed, *shape)
