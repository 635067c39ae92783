# SPDX-License-Identifier: Apache-2.0
"""Rows of numbers by key, in a folder of safetensors files that a kill, a bad disk or a second process cannot spoil.

A file is written whole or not at all and never changed. It holds ``keys`` [n, 16] uint8 and one float32 [n, d] tensor
per name, and a digest of each of these. Knows nothing of models and texts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from .checkpoint import replace

KEY_BYTES = 16
SUFFIX = ".safetensors"
LOCK_FILE = ".lock"
METADATA = "sha256"  # a single entry: safetensors writes several in any order

_log = logging.getLogger(__name__)


class ShardStore:
    """The files of one folder, which is made when the first one is written. op: starts every message."""

    def __init__(self, op: str, folder: Path) -> None:
        self.op, self.folder = op, folder
        self._alone = False
        self._damaged: set[Path] = set()

    def rows(
        self, names: Sequence[str], wanted: Callable[[bytes], bool]
    ) -> Iterator[tuple[list[bytes], dict[str, Tensor]]]:
        """Keys and their rows by name, file after file: of those keys that are wanted, where all names are there.

        A file that is damaged counts as absent, with a warning; inside :meth:`alone` it is removed.
        """
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            try:
                found = self._read(path, names, wanted)
            except FileNotFoundError:  # removed by another process
                continue
            except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
                if path not in self._damaged:
                    warnings.warn(f"{self.op}: {path} is damaged and is not used: {error}", stacklevel=2)
                self._damaged.add(path)
                if self._alone:
                    path.unlink()
                continue
            if found is not None:
                yield found

    def write(self, keys: Sequence[bytes], tensors: dict[str, Tensor]) -> None:
        """Add a file. The same keys and names replace each other."""
        packed = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(len(keys), KEY_BYTES)
        named = {"keys": packed, **{name: rows.to("cpu", torch.float32) for name, rows in tensors.items()}}
        digests = {name: _digest(name, packed, tensor) for name, tensor in named.items()}
        data = safetensors.torch.save(named, {METADATA: json.dumps(digests, sort_keys=True)})
        replace(self.folder / f"{_digest(' '.join(sorted(tensors)), packed)[:32]}{SUFFIX}", data)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Held by one process at a time; see :func:`alone`."""
        with alone(self.op, self.folder, f".*{SUFFIX}.*"):
            self._alone = True
            try:
                yield
            finally:
                self._alone = False

    def _read(
        self, path: Path, names: Sequence[str], wanted: Callable[[bytes], bool]
    ) -> tuple[list[bytes], dict[str, Tensor]] | None:
        with safetensors.safe_open(path, framework="pt") as file:
            digests = json.loads((file.metadata() or {})[METADATA])
            packed = _checked(file, "keys", digests)
            flat = packed.numpy().tobytes()
            keys = [flat[at : at + KEY_BYTES] for at in range(0, len(flat), KEY_BYTES)]
            rows = [row for row, key in enumerate(keys) if wanted(key)]
            if not rows or not set(names) <= set(digests):
                return None
            return [keys[row] for row in rows], {name: _checked(file, name, digests, packed)[rows] for name in names}


@contextmanager
def alone(op: str, folder: Path, leftovers: str) -> Iterator[None]:
    """Makes a folder and holds it, one process at a time; given back when that one dies.

    leftovers: pattern of the half-written files that a killed process left there; they are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        _log.warning("%s: another process writes to %s, waiting for it", op, folder)
        lock.acquire()
    try:
        for path in folder.glob(leftovers):
            path.unlink()
        yield
    finally:
        lock.release()


def _checked(file: object, name: str, digests: dict[str, str], packed: Tensor | None = None) -> Tensor:
    tensor: Tensor = file.get_tensor(name)  # type: ignore[attr-defined]
    if _digest(name, tensor if packed is None else packed, tensor) != digests[name]:
        raise ValueError(f"tensor {name} is not what was written")
    return tensor


def _digest(name: str, *tensors: Tensor) -> str:
    digest = hashlib.sha256(name.encode())
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
