# SPDX-License-Identifier: Apache-2.0
"""Whether a model keeps its hands off padding: recurrences of some run on through it. Found by trying, not by name."""

from __future__ import annotations

import inspect
import weakref
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .forced import TruncatedForward

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn
    from transformers import PreTrainedModel

TOKENS = 8

_reads: weakref.WeakKeyDictionary[nn.Module, bool] = (
    weakref.WeakKeyDictionary()
)  # by the module whose states were tried


def left_padded(op: str, mask: Tensor) -> Tensor:
    """The mask [B, P] in int64. Raises ValueError unless every row is zeros, then at least one one."""
    odd = mask[mask != mask.bool()]
    if len(odd):
        raise ValueError(f"{op}: attention_mask must hold 0 and 1 alone, got {odd[0].item()}")
    mask = mask.long()
    if mask.numel() and not ((mask.diff(dim=1) >= 0).all() and mask[:, -1].all()):
        raise ValueError(f"{op}: attention_mask must be zeros, then at least one one, in every row: pad on the left")
    return mask


def check_unpadded(op: str, model: PreTrainedModel, layers: Sequence[nn.Module], ids: Tensor, mask: Tensor) -> None:
    """Raise ValueError when prompts [B, P] are padded and the states that ``layers`` give depend on that.

    model: the one that ``generate`` hands to its decoding loop, not a wrapper of it. Two forwards over a few tokens of
    one prompt, once for each of the layers; none where mask is all ones.
    """
    if bool(mask.all()):
        return
    unknown = [layer for layer in layers if layer not in _reads]
    if unknown:
        row = ids[int(mask.sum(1).argmax())].to(model.device)
        _reads.update(dict(zip(unknown, _reads_padding(model, unknown, row[-TOKENS:]), strict=True)))
    if any(_reads[layer] for layer in layers):
        raise ValueError(
            f"{op}: prompts of unequal length cannot be served: {type(model).__name__} reads padding; pass each alone"
        )


@torch.no_grad()
def _reads_padding(model: PreTrainedModel, layers: Sequence[nn.Module], tokens: Tensor) -> list[bool]:
    """For each layer, whether tokens [T] have other states, beyond rounding, with as many masked ones before them."""
    T = len(tokens)
    padded = torch.cat([tokens.flip(0), tokens])[None]
    mask = (torch.arange(2 * T, device=tokens.device) >= T).long()[None]
    inputs = {"attention_mask": mask}
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    with TruncatedForward(model, layers) as forward:
        after = forward(padded, **inputs)[0, T:].chunk(len(layers), -1)
        alone = forward(tokens[None])[0].chunk(len(layers), -1)
    far = torch.finfo(alone[0].dtype).eps ** 0.5
    return [bool((a - b).norm() > far * b.norm()) for a, b in zip(after, alone, strict=True)]
