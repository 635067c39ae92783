# SPDX-License-Identifier: Apache-2.0
"""A ranker on disk: design section "A ranker on disk". safetensors and JSON only."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch

from .config import RankerConfig

if TYPE_CHECKING:
    from .ranker import SafetyRanker

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
TENSOR_FILE = "model.safetensors"
CARD_FILE = "README.md"
CONFIG_KEYS = ("format_version", "model_id", "model_fingerprint", "ranker", "calibration", "metrics", "sha256")
MAX_CONFIG_BYTES = 1 << 20


def save(ranker: SafetyRanker, folder: Path) -> None:
    """Write the tensors, then the config that vouches for them, then the card."""
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in ranker.state_dict().items()}
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise ValueError(f"save_pretrained: tensor {name} must be finite")
    data = safetensors.torch.save(tensors)
    config = {
        "format_version": FORMAT_VERSION,
        "model_id": ranker.model_id,
        "model_fingerprint": ranker.model_fingerprint,
        "ranker": ranker.config.to_dict(),
        "calibration": None if ranker.calibration is None else list(ranker.calibration),
        "metrics": ranker.metrics,
    }
    config = json.loads(json.dumps(config, allow_nan=False))  # what a reader will see: lists, not tuples
    config["sha256"] = digest(config, data)
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / TENSOR_FILE, data)
    replace(folder / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())
    replace(folder / CARD_FILE, model_card(config).encode())


def load(path_or_hub_id: str | Path, revision: str | None) -> SafetyRanker:
    """Read and verify a checkpoint: version, keys, digest, tensor names, shapes, dtypes, values."""
    from .ranker import Calibration, SafetyRanker

    folder = locate(path_or_hub_id, revision)
    config = read_config(folder / CONFIG_FILE)
    data = read_file(folder / TENSOR_FILE)
    if digest({key: value for key, value in config.items() if key != "sha256"}, data) != config["sha256"]:
        raise refusal(folder, "sha256 does not match: config or tensors were damaged or edited")
    try:
        with torch.random.fork_rng(devices=[]):  # the caller's seed is for sampling
            ranker = SafetyRanker(
                RankerConfig.from_dict(config["ranker"]),
                calibration=None if config["calibration"] is None else Calibration(*config["calibration"]),
                model_id=config["model_id"],
                model_fingerprint=config["model_fingerprint"],
                metrics=config["metrics"],
            )
        tensors = safetensors.torch.load(data)
    except (TypeError, ValueError, safetensors.SafetensorError) as error:
        raise refusal(folder, str(error)) from error
    expected = ranker.state_dict()
    if set(tensors) != set(expected):
        missing, unknown = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
        raise refusal(folder, f"missing tensors {missing}, unknown {unknown}")
    for name, value in tensors.items():
        want = expected[name]
        if value.shape != want.shape or value.dtype != torch.float32:
            raise refusal(
                folder,
                f"tensor {name} must be float32 {list(want.shape)}, got {str(value.dtype)[6:]} {list(value.shape)}",
            )
        if not value.isfinite().all():
            raise refusal(folder, f"tensor {name} must be finite")
    ranker.load_state_dict(tensors)
    return ranker.eval()


def locate(path_or_hub_id: str | Path, revision: str | None) -> Path:
    """A local folder as it is; anything else is a repository to download."""
    folder = Path(path_or_hub_id)
    if folder.is_dir():
        return folder
    if isinstance(path_or_hub_id, Path) or folder.is_absolute() or folder.exists() or str(path_or_hub_id)[:1] in ".~":
        raise FileNotFoundError(f"from_pretrained: no folder {str(path_or_hub_id)!r}")
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                path_or_hub_id, revision=revision, allow_patterns=[CONFIG_FILE, TENSOR_FILE]
            )
        )
    except (OSError, huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.HFValidationError) as error:
        raise FileNotFoundError(
            f"from_pretrained: {path_or_hub_id!r} is no local folder, and no repository that can be reached: {error}"
        ) from error


def read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"from_pretrained: {path.parent} has no {path.name}") from None


def read_config(path: Path) -> dict[str, Any]:
    """``config.json`` with its keys and plain values checked."""
    text = read_file(path)

    def refuse_constant(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    try:
        if len(text) > MAX_CONFIG_BYTES:
            raise ValueError(f"larger than {MAX_CONFIG_BYTES} bytes")
        config = json.loads(text.decode(), object_pairs_hook=unique, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise refusal(path.parent, f"{path.name}: {error}") from error
    if not isinstance(config, dict) or config.get("format_version") != FORMAT_VERSION:
        got = config.get("format_version") if isinstance(config, dict) else type(config).__name__
        raise refusal(path.parent, f"format_version must be {FORMAT_VERSION}, got {got!r}")
    if set(config) != set(CONFIG_KEYS):
        raise refusal(
            path.parent,
            f"{path.name}: missing keys {sorted(set(CONFIG_KEYS) - set(config))}, "
            f"unknown {sorted(set(config) - set(CONFIG_KEYS))}",
        )
    calibration = config["calibration"]
    well_formed = (
        isinstance(config["ranker"], dict)
        and isinstance(config["metrics"], dict)
        and all(config[key] is None or isinstance(config[key], str) for key in ("model_id", "model_fingerprint"))
        and (calibration is None or (isinstance(calibration, list) and len(calibration) == 2))
        and all(isinstance(v, int | float) and math.isfinite(v) for v in calibration or [])
    )
    if not well_formed:
        raise refusal(path.parent, f"{path.name}: a value has the wrong type")
    return config


def digest(config: dict[str, Any], tensors: bytes) -> str:
    """sha256 of the config without its ``sha256`` key (keys sorted), then of the tensor file."""
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(canonical + b"\n" + tensors).hexdigest()


def replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def refusal(folder: Path, why: str) -> ValueError:
    return ValueError(f"from_pretrained: {folder}: {why}")


def model_card(config: dict[str, Any]) -> str:
    """A Hugging Face model card for the checkpoint."""
    shape = "\n".join(f"| {name} | {value} |" for name, value in config["ranker"].items())
    metrics = "\n".join(f"| {name} | {value} |" for name, value in config["metrics"].items())
    return f"""---
library_name: srr_fast
tags: [best-of-n, safety, reranking]
---
# Safety ranker for {config["model_id"] or "an unnamed model"}

Ranks sampled answers by safety from the language model's own hidden states (arXiv 2505.15710).

```python
import srr_fast

ranker = srr_fast.SafetyRanker.from_pretrained("this folder")
```

| field | value |
|---|---|
{shape}

| metric | value |
|---|---|
{metrics}
"""
