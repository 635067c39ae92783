# SPDX-License-Identifier: Apache-2.0
"""The only importer of the native extension; keeps the reason when it is missing."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch.autograd import forward_ad


def build_note() -> str | None:
    """What setup.py wrote when it left the extension out."""
    note = Path(__file__).with_name("_build_note.txt")
    return note.read_text().strip() if note.is_file() else None


def _load() -> ModuleType:
    from . import _C

    built_for, running = _C.build_info()["torch"], str(torch.__version__)
    if not _same_abi(built_for, running, _C.build_info()["devices"]):
        raise ImportError(f"the extension was built for torch {built_for}, this is torch {running}: build it again")
    return _C


def _same_abi(built_for: str, running: str, devices: Sequence[str]) -> bool:
    """The builds of a release, +cpu and +cu130, are one to an extension that includes nothing of CUDA."""
    if "cuda" not in devices:
        built_for, running = (re.sub(r"\+(cpu|cu\d+)$", "", version) for version in (built_for, running))
    return built_for == running


BACKENDS = ("native", "reference")
_forced = os.environ.get("SRR_FAST_BACKEND") or None
if _forced not in (None, *BACKENDS):
    raise ValueError(f"SRR_FAST_BACKEND must be one of {BACKENDS} or unset, got {_forced!r}")

extension: ModuleType | None = None
missing_reason: str | None = None
if _forced == "reference":
    missing_reason = "SRR_FAST_BACKEND=reference"
else:
    try:
        extension = _load()
    except ImportError as error:
        missing_reason = f"{error}; the build said: {note}" if (note := build_note()) else str(error)
        if _forced == "native":
            raise ImportError(f"SRR_FAST_BACKEND=native, but there is no extension: {missing_reason}") from error
        warnings.warn(
            f"srr_fast: no native extension, scoring runs on the PyTorch reference ({missing_reason}). "
            "`python -m srr_fast.env` says what was built; SRR_FAST_BACKEND=reference silences this.",
            RuntimeWarning,
            stacklevel=2,
        )

devices: tuple[str, ...] = tuple(extension.build_info()["devices"]) if extension else ()

if extension and hasattr(os, "register_at_fork"):
    # The parent's OpenMP workers do not exist in a forked child: waiting for them would hang it.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def serves(*tensors: torch.Tensor, optional: torch.Tensor | None = None) -> bool:
    """Whether the native ops take these inputs; the reference takes what they do not.

    With SRR_FAST_BACKEND=native they are always chosen, and raise for what they cannot serve.
    """
    if extension is None:
        return False
    wants_grad = torch.is_grad_enabled()
    if forward_ad._current_level >= 0 and _forced != "native":
        return False
    for t in tensors if optional is None else (*tensors, optional):
        if not isinstance(t, torch.Tensor) or t.layout != torch.strided or t.is_nested or t.is_quantized:
            return False
        if _forced != "native" and (
            t.device.type not in (*devices, "meta") or t.dtype == torch.float64 or (wants_grad and t.requires_grad)
        ):
            return False
    return True
