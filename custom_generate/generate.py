# SPDX-License-Identifier: Apache-2.0
"""Best-of-N for ``model.generate``, in the layout of Hugging Face's custom generation repositories."""

from functools import lru_cache

import srr_fast


@lru_cache(maxsize=8)
def _loop(ranker):
    return srr_fast.best_of_n(ranker if hasattr(ranker, "prepare") else srr_fast.SafetyRanker.from_pretrained(ranker))


def generate(inputs=None, generation_config=None, *, model, ranker=None, **kwargs):
    """``model.generate`` with the safest of ``num_return_sequences`` sampled answers as its result.

    ranker: a ``SafetyRanker``, or the folder or hub id of one. Everything else, and the answer, as in
    ``srr_fast.best_of_n``; ``do_sample`` defaults to True.
    """
    if ranker is None:
        raise TypeError("generate: wants ranker=, a SafetyRanker or the folder or hub id of one")
    if generation_config is None:
        kwargs.setdefault("do_sample", True)
    # The class's own generate: a model loaded from a repository like this one has this function in its place.
    return type(model).generate(model, inputs, generation_config, custom_generate=_loop(ranker), **kwargs)
