# SPDX-License-Identifier: Apache-2.0
"""transformers' Trainer as everything here uses it: quiet, and without files left behind."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback


def fit(
    module: nn.Module,
    rows: Any,
    collate: Callable[[list[Any]], Any],
    *,
    kind: type[Trainer] | None = None,
    held_out: Any = None,
    callbacks: Sequence[TrainerCallback] = (),
    **arguments: Any,
) -> list[dict[str, float]]:
    """Train a module in place.

    module:    its forward takes what ``collate`` makes of some of the rows, and returns a dict with the ``loss``.
    kind:      of Trainer. held_out: its ``eval_dataset``. arguments: of ``TrainingArguments``.

    Returns what Trainer logged, a dict per entry.
    """
    from transformers import PrinterCallback, Trainer, TrainingArguments

    defaults: dict[str, Any] = {
        "save_strategy": "no",
        "report_to": "none",
        "warmup_steps": 0.1,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": not sys.stderr.isatty(),
    }
    with tempfile.TemporaryDirectory() as folder:
        made = (kind or Trainer)(
            module,
            TrainingArguments(folder, **(defaults | arguments)),
            data_collator=collate,
            train_dataset=rows,
            eval_dataset=held_out,
            callbacks=list(callbacks),
        )
        made.remove_callback(PrinterCallback)
        made.train()
    return made.state.log_history
