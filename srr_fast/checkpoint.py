# SPDX-License-Identifier: Apache-2.0
"""A ranker on disk: safetensors, JSON and a model card, never pickle."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch

from . import strict_json
from .config import RankerConfig

if TYPE_CHECKING:
    from .ranker import SafetyRanker

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
TENSOR_FILE = "model.safetensors"
CARD_FILE = "README.md"
CONFIG_KEYS = (
    "format_version",
    "model_id",
    "model_fingerprint",
    "reading_fingerprint",
    "ranker",
    "calibration",
    "metrics",
    "sha256",
)
MAX_CONFIG_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 20  # of the tensor file, before the tensors; a name and its place take about 100


def save(ranker: SafetyRanker, folder: Path) -> None:
    """Write the tensors, then the config that vouches for them, then the card; nothing that :func:`load` refuses."""
    if any(value.is_meta for value in ranker.state_dict().values()):
        raise ValueError("save_pretrained: the ranker must have values, it is on the meta device")
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in ranker.state_dict().items()}
    data = safetensors.torch.save(tensors)
    values = {
        "format_version": FORMAT_VERSION,
        "model_id": ranker.model_id,
        "model_fingerprint": ranker.model_fingerprint,
        "reading_fingerprint": ranker.reading_fingerprint,
        "ranker": ranker.config.to_dict(),
        "calibration": ranker.calibration,
        "metrics": ranker.metrics,
    }
    try:
        config = json.loads(json.dumps(values, allow_nan=False))  # what a reader will see: lists, not tuples
        config["sha256"] = digest(config, data)
        text = (json.dumps(config, indent=2) + "\n").encode()
        verify(parse(text), data)
    except (TypeError, ValueError, RecursionError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"save_pretrained: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    replace_all(
        {
            folder / TENSOR_FILE: data,
            folder / CONFIG_FILE: text,
            folder / CARD_FILE: model_card(config).encode(),
        }
    )


def load(path_or_hub_id: str | Path, revision: str | None) -> SafetyRanker:
    """Read and verify a checkpoint: version, keys, digest, tensor names, shapes, dtypes, values."""
    folder = locate(path_or_hub_id, revision)
    try:
        config, data = read(folder)
        if not signed(config, data):  # unless a save replaced both files between the two reads
            config, data = read(folder)
        ranker, tensors = verify(config, data)
    except (TypeError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise ValueError(f"from_pretrained: {folder}: {error}") from error
    ranker.float().to_empty(device=torch.get_default_device())  # float32 as on disk, whatever the default dtype
    ranker.load_state_dict(tensors)
    return ranker.eval()


def read(folder: Path) -> tuple[dict[str, Any], bytes]:
    """The parsed config and the tensor file, of which no more is read than tensors of that config can fill."""
    config = parse(read_file(folder / CONFIG_FILE, MAX_CONFIG_BYTES))
    numbers = sum(value.numel() for value in blank(config).state_dict().values())
    return config, read_file(folder / TENSOR_FILE, 4 * numbers + MAX_HEADER_BYTES)


def blank(config: dict[str, Any]) -> SafetyRanker:
    """The ranker of a parsed config, on the meta device so that a config allocates nothing."""
    from .ranker import SafetyRanker

    if not isinstance(config["metrics"], dict):
        raise TypeError(f"metrics must be a dict, got {type(config['metrics']).__name__}")
    with torch.device("meta"):
        return SafetyRanker(
            RankerConfig.from_dict(config["ranker"]),
            calibration=config["calibration"],
            model_id=config["model_id"],
            model_fingerprint=config["model_fingerprint"],
            reading_fingerprint=config["reading_fingerprint"],
            metrics=config["metrics"],
        )


def parse(text: bytes) -> dict[str, Any]:
    """``config.json`` with its keys checked."""
    try:
        if len(text) > MAX_CONFIG_BYTES:
            raise ValueError(f"larger than {MAX_CONFIG_BYTES} bytes")
        config = strict_json.loads(text)
    except ValueError as error:
        raise ValueError(f"{CONFIG_FILE}: {error}") from error
    version = config.get("format_version") if isinstance(config, dict) else type(config).__name__
    if type(version) is not int or version != FORMAT_VERSION:
        raise ValueError(f"format_version must be {FORMAT_VERSION}, got {version!r}")
    if set(config) != set(CONFIG_KEYS):
        raise ValueError(
            f"{CONFIG_FILE}: missing keys {sorted(set(CONFIG_KEYS) - set(config))}, "
            f"unknown {sorted(set(config) - set(CONFIG_KEYS))}"
        )
    return config


def verify(config: dict[str, Any], data: bytes) -> tuple[SafetyRanker, dict[str, torch.Tensor]]:
    """The :func:`blank` ranker of a parsed config, and its tensors."""
    if not signed(config, data):
        raise ValueError("sha256 does not match: config or tensors were damaged or edited")
    ranker = blank(config)
    tensors = safetensors.torch.load(data)
    expected = ranker.state_dict()
    if set(tensors) != set(expected):
        missing, unknown = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
        raise ValueError(f"missing tensors {missing}, unknown {unknown}")
    for name, value in tensors.items():
        want = expected[name]
        if value.shape != want.shape or value.dtype != torch.float32:
            raise ValueError(
                f"tensor {name} must be float32 {list(want.shape)}, got {str(value.dtype)[6:]} {list(value.shape)}"
            )
        if not value.isfinite().all():
            raise ValueError(f"tensor {name} must be finite")
    return ranker, tensors


def locate(path_or_hub_id: str | Path, revision: str | None) -> Path:
    """A local folder as it is; anything else is a repository to download."""
    if not isinstance(path_or_hub_id, str | Path):
        raise TypeError(f"from_pretrained: wants a folder or a hub id, got {type(path_or_hub_id).__name__}")
    if revision is not None and not isinstance(revision, str):
        raise TypeError(f"from_pretrained: revision must be a str or None, got {type(revision).__name__}")
    folder = Path(path_or_hub_id)
    if os.path.isdir(folder):
        return folder
    local = isinstance(path_or_hub_id, Path) or folder.is_absolute() or str(path_or_hub_id)[:1] in ".~"
    if local or os.path.exists(folder):
        raise FileNotFoundError(f"from_pretrained: no folder {str(path_or_hub_id)!r}")
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                str(path_or_hub_id), revision=revision, allow_patterns=[CONFIG_FILE, TENSOR_FILE]
            )
        )
    except (OSError, huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.HFValidationError) as error:
        raise FileNotFoundError(
            f"from_pretrained: {path_or_hub_id!r} is no local folder, and no repository that can be reached: {error}"
        ) from error


def read_file(path: Path, most: int) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a device never ends, a pipe never begins
            raise OSError("it is not a regular file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise OSError(f"it has {size} bytes, wanted at most {most}")
            return file.read(size)
    except FileNotFoundError:
        raise FileNotFoundError(f"from_pretrained: {path.parent} has no {path.name}") from None
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error


def digest(config: dict[str, Any], tensors: bytes) -> str:
    """sha256 of the config without its ``sha256`` key (keys sorted), then of the tensor file."""
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(canonical + b"\n" + tensors).hexdigest()


def signed(config: dict[str, Any], tensors: bytes) -> bool:
    return digest({key: value for key, value in config.items() if key != "sha256"}, tensors) == config["sha256"]


def replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, also when the machine stops."""
    replace_all({path: data})


def replace_all(files: dict[Path, bytes]) -> None:
    """Write files of one folder, each whole or not at all; none takes its place before all are on the disk."""
    parts = {path: path.with_name(f".{path.name}.{uuid.uuid4().hex}") for path in files}  # not tempfile's: the umask's
    try:
        for path, part in parts.items():
            try:
                part.write_bytes(files[path])
                with part.open("rb+") as file:
                    os.fsync(file.fileno())
            except OSError as error:
                if error.filename is None and error.errno is not None:  # as of a full disk
                    raise OSError(error.errno, error.strerror, str(path)) from error
                raise
        for path, part in parts.items():
            os.replace(part, path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


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
