# SPDX-License-Identifier: Apache-2.0
"""Whatever is passed in: the right answer, or TypeError / ValueError with op and argument; never silence or a crash."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hypothesis import strategies as st

from .row import Row
from .trials import Trial, trials
from .trials_pool import pool_offsets_trial, pool_trial, update_trial
from .trials_score import hidden_trial, out_trial, score_trial
from .trials_text import generate_trial, method_trial, text_trial
from .trials_values import config_trial, lists_trial, load_trial, ranker_trial

LIMIT_S = 1200.0
EXAMPLES = 500


def entries(folder: Path) -> dict[str, st.SearchStrategy[Trial]]:
    from srr_fast import minichat

    return {
        "pool": pool_trial(),
        "pool by offsets": pool_offsets_trial(),
        "pool_update_": update_trial(),
        "score": score_trial("score"),
        "PreparedScorer": score_trial("PreparedScorer"),
        "PreparedScorer, out=": out_trial(),
        "PreparedScorer.from_hidden": hidden_trial(),
        "SafetyRanker.score": score_trial("SafetyRanker.score"),
        "SafetyRanker(), prepare": ranker_trial(),
        "SafetyRanker.from_pretrained": load_trial(minichat.RANKER_FOLDER),
        "SafetyRanker.rank_many, safety, save_pretrained": method_trial(folder),
        "RankerConfig": config_trial(),
        "read_lists": lists_trial(folder),
        "TextRanker.rank, token ids": text_trial(False),
        "TextRanker.rank, tokenizer": text_trial(True),
        "BestOfN.generate": generate_trial(),
    }


def check_entry_points() -> Iterator[Row]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as name:
        for entry, strategy in entries(Path(name)).items():
            try:
                found = trials(strategy, EXAMPLES)
                figure, ok = ", ".join(f"{count} {what}" for what, count in sorted(found.items())), True
                ok = found.total() >= EXAMPLES
            except Exception as error:  # whatever it is, it is what was looked for
                figure, ok = f"{type(error).__name__}: {error}"[:300], False
            yield Row(f"{entry}: {EXAMPLES} inputs or more", figure, "each answered rightly or refused", ok)
