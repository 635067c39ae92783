# SPDX-License-Identifier: Apache-2.0
"""Options of ``model.generate``: which are served, which are not, and what holds where they are given twice."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig

from .prompts import eos_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Option of `generate` -> the values BestOfN serves, and what to do about others.
SERVED: dict[str, tuple[tuple[object, ...], str]] = {
    "streamer": ((None,), "tokens cannot be streamed before the best answer is known; leave it out"),
    "assistant_model": ((None,), "assisted decoding is not supported; leave it out"),
    "assistant_early_exit": ((None,), "assisted decoding is not supported; leave it out"),
    "prompt_lookup_num_tokens": ((None,), "prompt-lookup decoding is not supported; leave it out"),
    "use_mtp": ((None, False), "assisted decoding is not supported; leave it out"),
    "num_beam_groups": ((None, 1), "beams are searched for in one group; leave it out"),
    "constraints": ((None,), "constrained beam search is not supported; leave it out"),
    "force_words_ids": ((None,), "constrained beam search is not supported; leave it out"),
    "guidance_scale": ((None, 1, 1.0), "guidance runs the model twice; leave it out"),
    "penalty_alpha": ((None, 0, 0.0), "contrastive search is not supported; leave it out"),
    "dola_layers": ((None,), "DoLa decoding is not supported; leave it out"),
    "token_healing": ((None, False), "it rewrites the prompt; leave it out"),
    "custom_generate": ((None,), "BestOfN needs generate's own loop; leave it out"),
    "synced_gpus": ((None, False), "the finished rows of one process do not wait for another's; leave it out"),
}
# Arguments of `generate` that BestOfN sets itself -> what to do instead.
REFUSED = {
    "num_return_sequences": "pass n=",
    "inputs": "pass the prompts as the first argument",
    "input_ids": 'pass {"input_ids": ..., "attention_mask": ...} as the first argument',
    "attention_mask": 'pass {"input_ids": ..., "attention_mask": ...} as the first argument',
    "inputs_embeds": "pass token ids as the first argument",
    "cache": "BestOfN makes the cache; use cache_implementation= to choose its kind",
    "past_key_values": "BestOfN makes the cache; use cache_implementation= to choose its kind",
    "return_dict_in_generate": "the answer is a BestOfNResult",
    "output_scores": "the answer is a BestOfNResult",
    "output_logits": "the answer is a BestOfNResult",
    "output_hidden_states": "the answer is a BestOfNResult",
    "output_attentions": "the answer is a BestOfNResult",
}


class Options:
    """What the caller passed to ``generate``, over the GenerationConfig passed, over the model's."""

    def __init__(self, model: PreTrainedModel, given: dict[str, Any]) -> None:
        self.given = given
        self.passed: GenerationConfig | None = given.get("generation_config")
        self.default = model.generation_config
        if self.passed is not None and not isinstance(self.passed, GenerationConfig):
            raise TypeError(
                f"BestOfN: generation_config must be a GenerationConfig or None, got {type(self.passed).__name__}"
            )

    def __getitem__(self, name: str) -> Any:
        if name in self.given:
            return self.given[name]
        value = getattr(self.passed, name, None)
        return getattr(self.default, name, None) if value is None else value

    @property
    def eos(self) -> list[int]:
        """The ids that end a row."""
        return eos_ids(self["eos_token_id"])

    @property
    def num_beams(self) -> int:
        return self["num_beams"] or 1

    @property
    def do_sample(self) -> bool:
        """True unless this call says otherwise: what the model's own config says does not matter."""
        value = self.given.get("do_sample", getattr(self.passed, "do_sample", None))
        return True if value is None else value

    def check(self, n: int) -> None:
        for name, instead in REFUSED.items():
            if name in self.given:
                raise ValueError(f"BestOfN: {name} cannot be passed: {instead}")
        for name, (served, instead) in SERVED.items():
            if self[name] not in served:
                raise ValueError(f"BestOfN: {name}={self[name]!r} cannot be served: {instead}")
        criteria = self.given.get("stopping_criteria") or []
        if not isinstance(criteria, list | tuple) or not all(map(callable, criteria)):
            inside = sorted({type(one).__name__ for one in criteria}) if isinstance(criteria, list | tuple) else ()
            got = type(criteria).__name__ + (f" of {'/'.join(inside)}" if inside else "")
            raise TypeError(f"BestOfN: stopping_criteria must be a list of StoppingCriteria, got {got}")
        if self["cache_implementation"] == "paged":
            raise ValueError("BestOfN: cache_implementation='paged' cannot be served; choose 'dynamic' or 'static'")
        if self.num_beams > 1:
            if n > self.num_beams:
                raise ValueError(f"BestOfN: n={n} candidates want num_beams of at least {n}, got {self.num_beams}")
        elif not self.do_sample and n > 1:
            raise ValueError(f"BestOfN: do_sample=False gives n={n} equal candidates; pass do_sample=True or n=1")

    def for_generate(self, n: int) -> dict[str, Any]:
        """A copy of the caller's options with what BestOfN needs; a GenerationConfig passed takes those in itself."""
        needed: dict[str, Any] = {
            "do_sample": self.do_sample,
            "num_return_sequences": n,
            "return_dict_in_generate": False,
            "output_hidden_states": False,
            "output_attentions": False,
        }
        if self["pad_token_id"] is None and self.eos:
            needed["pad_token_id"] = self.eos[0]
        if self.passed is None:
            return self.given | needed
        config = copy.deepcopy(self.passed)
        config.update(**needed)
        return self.given | {"generation_config": config}
