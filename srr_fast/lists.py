# SPDX-License-Identifier: Apache-2.0
"""Labelled lists: instructions, each with responses known to be safe, unsafe or neither; one JSON object per line.

``{"instruction": "...", "responses": [{"text": "...", "safe": 1}, ...]}``, with ``id``, ``source``, ``split`` and
``category`` where known. Other fields of a row or a response are kept as ``extra``.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import reprlib
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

from . import strict_json

SPLITS = ("train", "val", "test")
MAX_LINE_BYTES = 16 << 20


@dataclass(frozen=True)
class LabelledResponse:
    """One response. safe: None where nobody said. extra: the other fields of the JSON object."""

    text: str
    safe: bool | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class LabelledList:
    """An instruction and its responses, none where only the instruction is known.

    source: the data set; id: unique in a file; split: train, val, test, or None (see :func:`split_of`);
    category: any name, such as that of the harm.
    """

    instruction: str
    responses: tuple[LabelledResponse, ...]
    id: str
    source: str
    split: str | None = None
    category: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def mixed(self) -> bool:
        """Whether at least one response is safe and at least one is unsafe."""
        return {True, False} <= {response.safe for response in self.responses}


ROW_FIELDS = ("id", "source", "split", "instruction", "responses", "category")
RESPONSE_FIELDS = ("text", "safe")


def read_lists(*paths: str | Path) -> list[LabelledList]:
    """The rows of .jsonl files, packed with gzip or xz or not, in order. Blank lines do not count.

    ``source`` defaults to the file's name without its suffixes, ``id`` to "<source>-<line>", ``responses`` to none.
    ``safe`` is 0, 1, false, true or null. Responses without text are dropped; a warning says how many.
    Raises ValueError "path:line: field must be ..., got ..." for anything else that is not the schema, an id that
    occurs twice in a file, a line above MAX_LINE_BYTES, a broken stream and a file without rows;
    OSError for a file that cannot be read.
    """
    rows: list[LabelledList] = []
    blank: dict[str, int] = {}
    for path in map(Path, paths):
        seen: dict[str, int] = {}
        for number, line in lines(path):
            if not line.strip():
                continue
            try:
                row, dropped = _parse(strict_json.loads(line), _stem(path), number)
                if row.id in seen:
                    raise ValueError(f"id must be unique, got {show(row.id)} of line {seen[row.id]} again")
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from None
            seen[row.id] = number
            rows.append(row)
            if dropped:
                blank[str(path)] = blank.get(str(path), 0) + dropped
        if not seen:
            raise ValueError(f"{path}: has no rows")
    if blank:
        files = ", ".join(f"{count} of {path}" for path, count in blank.items())
        warnings.warn(f"read_lists: dropped {sum(blank.values())} responses without text: {files}", stacklevel=2)
    return rows


def write_lists(path: str | Path, lists: Iterable[LabelledList]) -> None:
    """Write a file that :func:`read_lists` reads back, whole or not at all; packed where the name ends in .gz or .xz.

    Raises ValueError for a row that it would refuse or change.
    """
    from .checkpoint import replace

    path = Path(path)
    encoded: list[bytes] = []
    seen: set[str] = set()
    for index, row in enumerate(lists):
        try:
            line = encode(row)
            if row.id in seen:
                raise ValueError(f"id must be unique, got {show(row.id)} again")
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"write_lists: row {index}: {error}") from error
        seen.add(row.id)
        encoded.append(line)
    if not encoded:
        raise ValueError(f"write_lists: no rows for {path}")
    data = b"".join(encoded)
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    elif path.suffix == ".xz":
        data = lzma.compress(data)
    replace(path, data)


def encode(row: LabelledList) -> bytes:
    """One line of a file, newline included. Raises ValueError for a row that would not be read back as it is."""
    for kind, extra, names in (
        ("extra", row.extra, ROW_FIELDS),
        *(("response extra", response.extra, RESPONSE_FIELDS) for response in row.responses),
    ):
        if clash := sorted(extra.keys() & set(names)):
            raise ValueError(f"{kind} must not hold fields of the schema, got {clash}")
    values: dict[str, Any] = {"id": row.id, "source": row.source, "split": row.split, "instruction": row.instruction}
    values["responses"] = [
        {"text": response.text, **_known(safe=response.safe if response.safe is None else int(response.safe))}
        | dict(response.extra)
        for response in row.responses
    ]
    values = _known(**values, category=row.category) | dict(row.extra)
    line = json.dumps(values, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"must take at most {MAX_LINE_BYTES} bytes, got {len(line)}")
    if _parse(strict_json.loads(line), "", 0)[1]:
        raise ValueError("responses must have text, got a blank one")
    return line


def decode(line: bytes) -> LabelledList:
    """The row of a line that :func:`encode` wrote."""
    return _parse(strict_json.loads(line), "", 0)[0]


def split_of(row: LabelledList) -> str:
    """The row's own split, else one by a hash of the instruction's words: 70 % train, 10 % val, 20 % test."""
    if row.split is not None:
        return row.split
    words = " ".join(row.instruction.casefold().split())
    share = int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big") / 2**64
    return "train" if share < 0.7 else "val" if share < 0.8 else "test"


def labelled(op: str, lists: Iterable[LabelledList], split: str | None) -> list[LabelledList]:
    """The lists of a split (None: all) with their labelled responses, maybe none; a warning counts what is left out."""
    chosen = [row for row in lists if split is None or split_of(row) == split]
    rows = [replace(row, responses=tuple(r for r in row.responses if r.safe is not None)) for row in chosen]
    kept = [row for row in rows if row.responses]
    unlabelled = sum(len(row.responses) for row in chosen) - sum(len(row.responses) for row in kept)
    if unlabelled or len(kept) < len(chosen):
        of_split = f" of split {split}" if split else ""
        warnings.warn(
            f"{op}: left out {unlabelled} responses{of_split} without a label and {len(chosen) - len(kept)} lists "
            "without a labelled response",
            stacklevel=3,
        )
    return kept


def lines(path: Path, most: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and bytes of the lines of a file that may be packed with gzip or xz, without a byte order mark.

    most: bytes in a line, MAX_LINE_BYTES by default; no more are ever in memory. Raises ValueError for a longer line
    and for a broken stream.
    """
    most = most or MAX_LINE_BYTES
    with path.open("rb") as raw:
        file, number = _unpacked(path, raw), 0
        while True:
            number += 1
            try:
                line = file.readline(most + 1)
            except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
                raise ValueError(f"{path}:{number}: packed data is broken: {error}") from error
            if not line:
                return
            if len(line) > most:
                raise ValueError(f"{path}:{number}: line must be at most {most} bytes, got more")
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            yield number, line


def _unpacked(path: Path, raw: BufferedReader) -> BufferedReader | gzip.GzipFile | lzma.LZMAFile:
    """By content, so that a name does not matter; an empty file of a packed name is one cut off."""
    head = raw.peek(6)
    if head.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMAFile(raw)
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=raw)
    if path.suffix in (".gz", ".xz"):
        raise ValueError(f"{path}: must be packed as its name says, got {show(head[:6])}")
    return raw


def _parse(value: Any, stem: str, number: int) -> tuple[LabelledList, int]:
    """The list of a JSON value, and how many responses without text it had. The one statement of the schema."""
    if not isinstance(value, dict):
        raise ValueError(f"row must be an object, got {show(value)}")
    source = _text(value, "source", stem, blank=False)
    split = value.get("split")
    if split not in (None, *SPLITS):
        raise ValueError(f"split must be one of {', '.join(SPLITS)} or null, got {show(split)}")
    if not isinstance(category := value.get("category"), str | None):
        raise ValueError(f"category must be a string or null, got {show(category)}")
    if not isinstance(items := value.get("responses", []), list):
        raise ValueError(f"responses must be a list, got {show(items)}")
    responses = [_response(item, f"responses[{index}]") for index, item in enumerate(items)]
    kept = tuple(response for response in responses if response.text.strip())
    row = LabelledList(
        instruction=_text(value, "instruction", blank=False),
        responses=kept,
        id=_text(value, "id", f"{source}-{number}", blank=False),
        source=source,
        split=split,
        category=category,
        extra={name: item for name, item in value.items() if name not in ROW_FIELDS},
    )
    return row, len(responses) - len(kept)


def _response(value: Any, name: str) -> LabelledResponse:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object, got {show(value)}")
    safe = value.get("safe")
    if not (safe is None or (isinstance(safe, int) and safe in (0, 1))):
        raise ValueError(f"{name}.safe must be 0, 1, false, true or null, got {show(safe)}")
    return LabelledResponse(
        text=_text(value, "text", blank=True, prefix=f"{name}."),
        safe=None if safe is None else bool(safe),
        extra={key: item for key, item in value.items() if key not in RESPONSE_FIELDS},
    )


def _text(value: dict[str, Any], name: str, default: str | None = None, *, blank: bool, prefix: str = "") -> str:
    if name not in value and default is None:
        raise ValueError(f"{prefix}{name} must be a string, got none")
    text = value.get(name, default)
    if not isinstance(text, str) or not (blank or text.strip() or name not in value):
        raise ValueError(f"{prefix}{name} must be a string{'' if blank else ' with text'}, got {show(text)}")
    return text


def _known(**values: Any) -> dict[str, Any]:
    """The fields that have a value."""
    return {name: value for name, value in values.items() if value is not None}


def show(value: Any) -> str:
    """A value in at most a line."""
    return reprlib.repr(value)


def _stem(path: Path) -> str:
    """lists.jsonl.gz is lists."""
    return path.name.removesuffix(".gz").removesuffix(".xz").removesuffix(".jsonl")
