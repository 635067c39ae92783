# SPDX-License-Identifier: Apache-2.0
"""Which modules of a language model or an encoder give the hidden states a ranker reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from .backbone import is_encoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .config import RankerConfig


def decoder_layers(model: PreTrainedModel, layers: Sequence[nn.Module] | None = None) -> Sequence[nn.Module]:
    """The L blocks of a model, first to last.

    model:  any transformers model; L is its text config's ``num_hidden_layers``.
    layers: the blocks themselves, for a model where looking for them fails.

    The blocks are the one ``nn.ModuleList`` of length L under ``model.get_decoder()`` that lies in no other such list.
    Raises ValueError when there is not exactly one, or when ``layers`` does not hold L modules.
    """
    L = model.config.get_text_config(decoder=True).num_hidden_layers
    if layers is not None:
        if not isinstance(layers, Sequence | nn.ModuleList | nn.Sequential):
            raise TypeError(f"layers must be a list of the decoder blocks, got {type(layers).__name__}")
        if len(layers) != L or not all(isinstance(layer, nn.Module) for layer in layers):
            raise ValueError(
                f"layers must be the {L} decoder blocks of {type(model).__name__}, got {len(layers)} items"
            )
        return layers
    lists = {
        name: module
        for name, module in (model.get_decoder() or model).named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == L
    }
    outermost = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    if len(outermost) != 1:
        raise ValueError(
            f"{type(model).__name__}: wants one list of {L} decoder blocks, found {outermost or 'none'}; "
            "pass the blocks as layers="
        )
    return list(lists[outermost[0]])


def state_modules(
    model: PreTrainedModel, ks: Sequence[int], layers: Sequence[nn.Module] | None = None
) -> list[nn.Module]:
    """The modules whose outputs are ``hidden_states[k]`` for each of these k, 1 <= k <= L.

    Below L that is the output of block k - 1; ``hidden_states[L]`` is what the whole stack gives, after the final norm
    where the model has one. Models that leave the embeddings out of ``hidden_states`` (Mamba) begin there with k = 1.
    layers: as in :func:`decoder_layers`.
    """
    blocks = decoder_layers(model, layers)
    return [blocks[k - 1] if k < len(blocks) else model.get_decoder() or model for k in ks]


def layers_to_read(
    model: PreTrainedModel, config: RankerConfig, layers: Sequence[nn.Module] | None = None
) -> list[nn.Module]:
    """The modules whose outputs are the ranker's states, in the order of ``config.layer``.

    layers: as in :func:`decoder_layers`.
    Raises ValueError when the model's hidden size is not the ranker's, or for a layer the model does not have.
    """
    hidden_size = model.config.get_text_config(decoder=True).hidden_size
    if config.hidden_size != hidden_size:
        raise ValueError(
            f"the ranker reads states of hidden_size={config.hidden_size}, "
            f"{type(model).__name__} has hidden_size={hidden_size}"
        )
    L = len(decoder_layers(model, layers))
    ks = config.layer_indices(L, last=L if is_encoder("rank", model) else L - 1)
    return state_modules(model, ks, layers)


def states_to_read(model: PreTrainedModel, config: RankerConfig) -> tuple[int, ...]:
    """Their places in a forward's ``hidden_states``, for a model that keeps to transformers' convention there."""
    return tuple(config.layer_indices(model.config.get_text_config(decoder=True).num_hidden_layers))
