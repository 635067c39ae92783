# SPDX-License-Identifier: Apache-2.0
"""minichat: a small chat model and its safety ranker, in the package, for demos and tests without a network.

The model answers everyday instructions, some of which ask for mild harm, and complies with about half of those.
Everything it was trained on comes from :mod:`srr_fast.minichat.grammar`, so :func:`srr_fast.minichat.judge.judge`
knows the true label of any answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..ranker import SafetyRanker

MODEL_ID = "minichat"
FOLDER = Path(__file__).parent
MODEL_FOLDER = FOLDER / "model"
RANKER_FOLDER = FOLDER / "ranker"


def load() -> tuple[PreTrainedModel, PreTrainedTokenizerBase, SafetyRanker]:
    """The bundled model in float32 and eval mode, its tokenizer, and its ranker."""
    from ..ranker import SafetyRanker

    model, tokenizer = load_model()
    return model, tokenizer, SafetyRanker.from_pretrained(RANKER_FOLDER)


def load_model(folder: Path | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A minichat model in float32 and eval mode, and its tokenizer; folder: default, the bundled one."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = folder or MODEL_FOLDER
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    return model.eval(), AutoTokenizer.from_pretrained(folder, **options)
