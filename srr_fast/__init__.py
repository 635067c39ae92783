# SPDX-License-Identifier: Apache-2.0
"""Choose the safest of N responses of a language model from its own hidden states."""

from .config import RankerConfig
from .functional import pool, pool_update_, score
from .prepared import PreparedScorer
from .ranker import Calibration, SafetyRanker
from .reference import ScoreOutput

__version__ = "0.1.0"
__all__ = [
    "Calibration",
    "PreparedScorer",
    "RankerConfig",
    "SafetyRanker",
    "ScoreOutput",
    "pool",
    "pool_update_",
    "score",
]
