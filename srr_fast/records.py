# SPDX-License-Identifier: Apache-2.0
"""Records of JSONL, JSON and CSV files, compressed or not, whose fields are asked for by kind.

Raises ValueError naming file, line and field.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import strict_json
from .lists import lines, show

MAX_DOCUMENT_BYTES = 1 << 30


@dataclass(frozen=True)
class Record:
    """One JSON object, or one record of CSV, and where it stands."""

    path: Path
    place: str
    values: Mapping[str, Any]

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def get(self, name: str, *kinds: type, among: Sequence[object] = ()) -> Any:
        """A field that must be of one of the kinds, and one of ``among`` where given; a bool is no int."""
        value = self.values.get(name)
        if type(value) not in kinds or (among and value not in among):
            names = among or ["null" if kind is type(None) else kind.__name__ for kind in kinds]
            wanted = " or ".join("null" if name is None else str(name) for name in names)
            raise ValueError(f"{self.place}: {name} must be {wanted}, got {show(value)}")
        return value

    def text(self, name: str) -> str:
        """A string with something in it."""
        if not (value := self.get(name, str)).strip():
            raise ValueError(f"{self.place}: {name} must have text, got {value!r}")
        return value

    def rows(self, name: str) -> Iterator[Record]:
        """The objects of a list."""
        for index, item in enumerate(self.get(name, list)):
            place = f"{self.place}: {name}[{index}]"
            if not isinstance(item, dict):
                raise ValueError(f"{place} must be an object, got {show(item)}")
            yield Record(self.path, place, item)


def read_jsonl(paths: Iterable[Path]) -> Iterator[Record]:
    """The lines of files, blank ones passed over."""
    for path in paths:
        for number, line in lines(path):
            if line.strip():
                yield _object(path, f"{path}:{number}", line)


def read_json(path: Path) -> Record:
    """A file that is one object."""
    return _object(path, str(path), _content(path))


def read_csv(paths: Iterable[Path]) -> Iterator[Record]:
    """The records of files with a header."""
    for path in paths:
        try:
            reader = csv.DictReader(io.StringIO(_content(path).decode(), newline=""), strict=True)
            for values in reader:
                yield Record(path, f"{path}:{reader.line_num}", values)
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path}: is not CSV in UTF-8: {error}") from error


def suffix(path: Path) -> str:
    """Without that of the compression, as is :func:`stem`."""
    return Path(path.name.removesuffix(".gz")).suffix


def stem(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).stem


def _content(path: Path) -> bytes:
    content = bytearray()
    for _, line in lines(path, MAX_DOCUMENT_BYTES):
        content += line
        if len(content) > MAX_DOCUMENT_BYTES:
            raise ValueError(f"{path}: must have at most {MAX_DOCUMENT_BYTES} bytes, got more")
    return bytes(content)


def _object(path: Path, place: str, data: bytes) -> Record:
    try:
        value = strict_json.loads(data)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{place}: must be an object, got {show(value)}")
    return Record(path, place, value)
