# SPDX-License-Identifier: Apache-2.0
"""The only importer of the native extension; keeps the reason when it is missing."""

from __future__ import annotations

import os
import warnings
from types import ModuleType

import torch

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
        from . import _C as extension  # type: ignore[no-redef]
    except ImportError as error:
        missing_reason = str(error)
        if _forced == "native":
            raise ImportError(f"SRR_FAST_BACKEND=native, but the extension cannot be loaded: {error}") from error
        warnings.warn(
            f"srr_fast: no native extension, scoring runs on the PyTorch reference ({error}). "
            "`python -m srr_fast.env` says what was built; SRR_FAST_BACKEND=reference silences this.",
            RuntimeWarning,
            stacklevel=2,
        )

devices: tuple[str, ...] = tuple(extension.build_info()["devices"]) if extension else ()

if extension and hasattr(os, "register_at_fork"):
    # The parent's OpenMP workers do not exist in a forked child: waiting for them would hang it.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def serves(*tensors: torch.Tensor | None) -> bool:
    """Whether the native ops take these inputs; the reference takes what they do not.

    With SRR_FAST_BACKEND=native they are always chosen, and raise for what they cannot serve.
    """
    if extension is None:
        return False
    if _forced == "native":
        return True
    given = [t for t in tensors if t is not None]
    wants_grad = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    return not wants_grad and given[0].device.type in devices and all(t.dtype != torch.float64 for t in given)
