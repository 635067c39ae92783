# SPDX-License-Identifier: Apache-2.0
"""From what a command line or a config file says to an engine."""

from __future__ import annotations

import dataclasses
from typing import Any

from .. import minichat
from ..loading import load
from .engine import Engine
from .settings import Settings


def make_settings(
    model: str | None = None, ranker: str | None = None, name: str | None = None, **settings: Any
) -> Settings:
    """model, ranker: hub ids or folders, None for minichat's. name: default, model. settings: of :class:`Settings`.

    Raises ValueError for one without the other, and for unknown or wrong settings.
    """
    if (model is None) != (ranker is None):
        raise ValueError("serve: model and ranker go together: a ranker reads the states of one model")
    if unknown := settings.keys() - {field.name for field in dataclasses.fields(Settings)}:
        raise ValueError(f"serve: unknown settings {sorted(unknown)}")
    return Settings(name or model or minichat.MODEL_ID, **settings)


def load_engine(model: str | None = None, ranker: str | None = None, **settings: Any) -> Engine:
    """The engine that :func:`make_settings` describes."""
    chosen = make_settings(model, ranker, **settings)
    return Engine(*load(model, ranker), chosen)
