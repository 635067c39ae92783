# SPDX-License-Identifier: Apache-2.0
"""The shape of a ranker."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields

from .reference import POOLINGS, SCOPES

# Generous, and small enough that no configuration asks for more than a machine has.
MAX_HIDDEN_SIZE = 1 << 20
MAX_PROJ_DIM = 512
MAX_ENCODER_LAYERS = 64
MAX_FFN_DIM = 1 << 16
MAX_LAYERS_READ = 64
MAX_LAYER = 1 << 16
MIN_TEMPERATURE = 1e-6  # below, float32 scores divided by it lose what tells them apart


@dataclass(frozen=True)
class RankerConfig:
    """Which states a ranker reads and how it compares them.

    hidden_size: width of the language model's hidden states, at most 2**20.
    layer:       hidden_states index k, 1 <= k < L (an encoder allows L), at most 2**16; a float is a fraction of L; a
                 tuple reads several layers, at most 64.
    pooling:     ``last``, ``mean`` or ``gated``, over the response's tokens.
    scope:       ``list``: candidates see each other. ``pair``: a score is independent of the other candidates.
    proj_dim:    p, at most 512. num_layers: encoder layers, at most 64, 0 for projection and cosine alone.
    ffn_dim:     at most 2**16, None is 4 p. norm_first: pre-LN.
    temperature: tau of the softmax over candidates, at least 1e-6. dropout: while training.

    Raises TypeError or ValueError naming the field.
    """

    hidden_size: int
    layer: int | float | tuple[int | float, ...] = 0.5
    pooling: str = "mean"
    scope: str = "list"
    proj_dim: int = 64
    num_layers: int = 1
    num_heads: int = 1
    ffn_dim: int | None = None
    norm_first: bool = False
    temperature: float = 0.1
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if isinstance(self.layer, list):
            object.__setattr__(self, "layer", tuple(self.layer))
        if self.ffn_dim is None:
            object.__setattr__(self, "ffn_dim", 4 * _integer("proj_dim", self.proj_dim, 1, MAX_PROJ_DIM))
        _integer("hidden_size", self.hidden_size, 1, MAX_HIDDEN_SIZE)
        _integer("proj_dim", self.proj_dim, 1, MAX_PROJ_DIM)
        _integer("num_layers", self.num_layers, 0, MAX_ENCODER_LAYERS)
        _integer("num_heads", self.num_heads, 1, MAX_PROJ_DIM)
        _integer("ffn_dim", self.ffn_dim, 1, MAX_FFN_DIM)
        if self.proj_dim % self.num_heads:
            raise ValueError(
                f"RankerConfig: proj_dim must be divisible by num_heads, got {self.proj_dim} and {self.num_heads}"
            )
        for name, value, known in (("pooling", self.pooling, POOLINGS), ("scope", self.scope, SCOPES)):
            if not isinstance(value, str):
                raise TypeError(f"RankerConfig: {name} must be a str, got {value!r}")
            if value not in known:
                raise ValueError(f"RankerConfig: {name} must be one of {known}, got {value!r}")
        if not isinstance(self.norm_first, bool):
            raise TypeError(f"RankerConfig: norm_first must be a bool, got {self.norm_first!r}")
        if _number("temperature", self.temperature) < MIN_TEMPERATURE:
            raise ValueError(f"RankerConfig: temperature must be at least {MIN_TEMPERATURE}, got {self.temperature}")
        if not (0 <= _number("dropout", self.dropout) < 1):
            raise ValueError(f"RankerConfig: dropout must be in [0, 1), got {self.dropout}")
        layers = self.layer if isinstance(self.layer, tuple) else (self.layer,)
        if not 1 <= len(layers) <= MAX_LAYERS_READ:
            raise ValueError(f"RankerConfig: layer must name 1 to {MAX_LAYERS_READ} layers, got {len(layers)}")
        for layer in layers:
            if isinstance(layer, bool) or not isinstance(layer, int | float):
                raise TypeError(f"RankerConfig: layer must be an int, a float or a tuple of them, got {layer!r}")
            if isinstance(layer, float) and not 0 < layer < 1:
                raise ValueError(f"RankerConfig: a fractional layer must be in (0, 1), got {layer}")
            if isinstance(layer, int) and not 1 <= layer <= MAX_LAYER:
                raise ValueError(f"RankerConfig: layer must be in 1 .. {MAX_LAYER} (0 is the embeddings), got {layer}")

    @classmethod
    def paper(cls, hidden_size: int) -> RankerConfig:
        """The paper's ranker (arXiv 2505.15710): the last token's state at a quarter of the depth, p = 512."""
        return cls(hidden_size, layer=0.25, pooling="last", scope="list", proj_dim=512, temperature=0.1)

    @property
    def state_size(self) -> int:
        """d: the width of a pooled state, all layers concatenated."""
        return self.hidden_size * (len(self.layer) if isinstance(self.layer, tuple) else 1)

    def layer_indices(self, num_hidden_layers: int, *, last: int | None = None) -> tuple[int, ...]:
        """The hidden_states indices to read from a model with L = ``num_hidden_layers`` blocks.

        last: the highest index allowed; default L - 1, for at k = L libraries disagree on the final norm. An encoder
        is read by one library only and allows L. A fraction never gives L.
        Raises ValueError for an index outside 1 <= k <= last.
        """
        last = num_hidden_layers - 1 if last is None else last
        layers = self.layer if isinstance(self.layer, tuple) else (self.layer,)
        if num_hidden_layers < 2:
            raise ValueError(f"RankerConfig: a middle layer wants a model of at least 2, got {num_hidden_layers}")
        indices = []
        for layer in layers:
            k = layer
            if isinstance(k, float):
                k = min(max(round(k * num_hidden_layers), 1), num_hidden_layers - 1)
            if not 1 <= k <= last:
                raise ValueError(
                    f"RankerConfig: layer must be in 1 .. {last} for a model of {num_hidden_layers} layers, got {k}"
                )
            indices.append(k)
        if len(set(indices)) != len(indices):
            raise ValueError(f"RankerConfig: layers must differ, got {tuple(indices)}")
        return tuple(indices)

    def to_dict(self) -> dict[str, object]:
        """Plain values, as written to ``config.json``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> RankerConfig:
        """Inverse of :meth:`to_dict`. Every field must be there and no other."""
        if not isinstance(values, dict):
            raise TypeError(f"RankerConfig: wants a dict of fields, got {type(values).__name__}")
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise ValueError(
                f"RankerConfig: wants exactly the fields {sorted(names)}, missing {sorted(names - set(values))}, "
                f"unknown {sorted(set(values) - names)}"
            )
        return cls(**values)  # type: ignore[arg-type]


def _integer(name: str, value: object, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"RankerConfig: {name} must be an int, got {value!r}")
    if not least <= value <= most:
        raise ValueError(f"RankerConfig: {name} must be in {least} .. {most}, got {value}")
    return value


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"RankerConfig: {name} must be a number, got {value!r}")
    if not finite(value):
        raise ValueError(f"RankerConfig: {name} must be finite, got {value}")
    return value


def finite(value: float) -> bool:
    """Whether a number is finite as a float, which an int beyond the floats is not."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
