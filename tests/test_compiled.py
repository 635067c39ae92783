# SPDX-License-Identifier: Apache-2.0
"""Compiled steps: one graph, the samples and the scores of the uncompiled ones, whoever else's hooks are there."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import CompileConfig

import srr_fast
from srr_fast.capture import Capture
from srr_fast.generation import BestOfN

from .at_once import at_once
from .best_of_n import EOS, IDS, MASK, PADDED, N, check, make_ranker
from .test_decoding import hooks
from .tiny_models import fresh

OPTIONS = dict(max_new_tokens=8, top_k=0, eos_token_id=EOS, pad_token_id=0, cache_implementation="static")


class Graphs:
    """Of a backend that runs what it is given: how many graphs there were, and how often one ran."""

    def __init__(self):
        self.made = self.run = 0

        def backend(graph, inputs):  # a function: generate copies its options, and would copy an object with its counts
            self.made += 1

            def counted(*args):
                self.run += 1
                return graph(*args)

            return counted

        self.backend = backend


@pytest.fixture
def graphs():
    torch._dynamo.reset()
    yield Graphs()
    torch._dynamo.reset()


def compiled(graphs) -> dict:
    config = CompileConfig(fullgraph=True, dynamic=False, backend=graphs.backend, mode=None)
    config._compile_all_devices = True
    return OPTIONS | dict(compile_config=config)


@pytest.mark.parametrize(("name", "layer"), [("llama", 2), ("qwen3", (3, 1)), ("gpt_neox", 2)], ids=str)
def test_steps_are_compiled_once_in_one_graph(name, layer, graphs):
    model, ranker = fresh(name), make_ranker(layer=layer)
    bon = BestOfN(model, None, ranker)
    torch.manual_seed(0)
    plain = [c.token_ids for r in bon.generate(PADDED, N, **OPTIONS) for c in r.candidates]
    for _ in range(2):
        before = graphs.run
        torch.manual_seed(0)
        results = bon.generate(PADDED, N, **compiled(graphs))
        check(bon, model, ranker, results)
        assert [c.token_ids for r in results for c in r.candidates] == plain
        assert graphs.made == 1 and graphs.run - before == max(map(len, plain)) - 1
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("name", "options"),
    [("llama", dict(prefill_chunk_size=3)), ("llama", dict(disable_compile=True)), ("gemma2", {})],
    ids=str,
)
def test_other_options_and_models(name, options, graphs):
    model, ranker = fresh(name), make_ranker()
    bon = BestOfN(model, None, ranker)
    check(bon, model, ranker, bon.generate(PADDED, N, **compiled(graphs) | options))
    assert (graphs.run > 0) == ("disable_compile" not in options)


def test_inside_generate(graphs):
    model, ranker = fresh("llama"), make_ranker()
    options = dict(num_return_sequences=N, do_sample=True, custom_generate=srr_fast.best_of_n(ranker))
    answers = []
    for more in (OPTIONS, compiled(graphs)):
        torch.manual_seed(0)
        answers.append(model.generate(**PADDED, **options, **more))
    assert torch.equal(*answers) and graphs.run > 0


def test_a_model_whose_hidden_states_are_others_is_not_compiled(graphs):
    class Doubles(nn.Module):
        """The output of a block, which the model notes before it is changed."""

        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, *args, **kwargs):
            return self.block(*args, **kwargs) * 2

    model, ranker = fresh("llama"), make_ranker()
    model.model.layers[1] = Doubles(model.model.layers[1])
    bon = BestOfN(model, None, ranker)
    torch.manual_seed(0)
    results = bon.generate(PADDED, N, **compiled(graphs))
    assert graphs.run == 0
    torch.manual_seed(0)
    plain = bon.generate(PADDED, N, **OPTIONS)
    assert [r.candidates for r in results] == [r.candidates for r in plain]


def test_hooks_of_another_capture_are_not_in_the_graph(graphs):
    model, ranker = fresh("llama"), make_ranker()
    bon, reader = BestOfN(model, None, ranker), srr_fast.TextRanker(model, None, ranker)

    def work(job):
        for _ in range(3):
            job()

    jobs = [
        lambda: check(bon, model, ranker, bon.generate(PADDED, N, **compiled(graphs))),
        lambda: check(bon, model, ranker, bon.generate(PADDED, N, **OPTIONS)),
        lambda: reader.rank(IDS[0].tolist(), [[40, 41], [42]]),
    ]
    at_once(work, jobs)
    assert graphs.run > 0


def test_a_forward_with_hooks_is_one_graph(graphs):
    model = fresh("llama")
    with Capture(list(model.model.layers[1:3]), MASK, 1), torch.no_grad():
        out = torch.compile(model, backend=graphs.backend, fullgraph=True)(input_ids=IDS, use_cache=False)
    assert out.logits.shape[:2] == IDS.shape and graphs.made == 1


def test_a_model_compiled_by_hand_is_refused(graphs):
    model = fresh("llama")
    model.forward = torch.compile(model.forward, backend=graphs.backend)
    with pytest.raises(RuntimeError, match="compiled by hand"):
        BestOfN(model, None, make_ranker()).generate(PADDED, 2, max_new_tokens=3)
    wrapped = torch.compile(fresh("llama"), backend=graphs.backend)  # whose generate is that of the model inside
    ranker = make_ranker()
    bon = BestOfN(wrapped, None, ranker)
    check(bon, fresh("llama"), ranker, bon.generate(PADDED, N, **OPTIONS))
