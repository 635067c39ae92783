# SPDX-License-Identifier: Apache-2.0
"""Choose the safest of N responses of a language model from its own hidden states."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import RankerConfig
    from .custom_generate import BestOfNOutput, best_of_n
    from .functional import pool, pool_update_, score
    from .generation import BestOfN
    from .prepared import PreparedScorer
    from .ranker import Calibration, SafetyRanker
    from .reference import ScoreOutput
    from .results import BestOfNResult, Candidate
    from .text import RankedResponse, TextRanker

__version__ = "0.1.0"
__all__ = [
    "BestOfN",
    "BestOfNOutput",
    "BestOfNResult",
    "Calibration",
    "Candidate",
    "PreparedScorer",
    "RankedResponse",
    "RankerConfig",
    "SafetyRanker",
    "ScoreOutput",
    "TextRanker",
    "best_of_n",
    "pool",
    "pool_update_",
    "score",
]

_HOMES = {
    "config": ("RankerConfig",),
    "custom_generate": ("BestOfNOutput", "best_of_n"),
    "functional": ("pool", "pool_update_", "score"),
    "generation": ("BestOfN",),
    "prepared": ("PreparedScorer",),
    "ranker": ("Calibration", "SafetyRanker"),
    "reference": ("ScoreOutput",),
    "results": ("BestOfNResult", "Candidate"),
    "text": ("RankedResponse", "TextRanker"),
}


def __getattr__(name: str) -> object:
    # Loaded at first use: `python -m srr_fast.env` must report on a machine where torch cannot even be imported.
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f".{home}", __name__), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
