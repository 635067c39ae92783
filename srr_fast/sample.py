# SPDX-License-Identifier: Apache-2.0
"""Labelled lists from a model: n samples per instruction, judged; killed and started again, it goes on."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from . import prompts, strict_json
from .judges import Judge
from .lists import LabelledList, LabelledResponse, decode, encode, write_lists

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    instructions: Sequence[LabelledList],
    judge: Judge,
    out: str | Path,
    *,
    n: int = 16,
    temperature: float = 1.0,
    max_new_tokens: int = 256,
    seed: int = 0,
) -> list[LabelledList]:
    """Write to ``out``, and return, the instructions with n sampled responses each, labelled by the judge.

    instructions: their responses, if any, are left out; ids must differ. judge: see :mod:`srr_fast.judges`. The end of
    the model's name and the judge's are in every row, as ``model`` and ``judge``.
    Responses that differ in white space alone become one with a ``count``; those without text are dropped, and a
    warning says how many.

    Rows are appended to ``<out>.part`` as they are made, and become ``out`` at the end. A call with the same arguments
    goes on from there. What an instruction draws depends on the seed and its id alone, so the file is the one that a
    call without a break would have written.

    Raises FileExistsError when ``out`` is there; ValueError for a part begun with other arguments or that another
    process writes to, for a judge that returns what is no label, and for options out of range.
    """
    out = Path(out)
    if model.config.is_encoder_decoder:
        raise ValueError(f"sample: model must be decoder-only, {type(model).__name__} is encoder-decoder")
    if n < 1 or max_new_tokens < 1 or not temperature > 0:
        raise ValueError(
            f"sample: n and max_new_tokens must be at least 1 and temperature above 0, "
            f"got {n}, {max_new_tokens} and {temperature}"
        )
    if repeated := [name for name, count in Counter(row.id for row in instructions).items() if count > 1]:
        raise ValueError(f"sample: ids must differ, got {repeated[0]!r} more than once")
    if not instructions:
        raise ValueError("sample: there must be at least one instruction, got none")
    if out.exists():
        raise FileExistsError(f"sample: {out} is there already: choose another name or remove it")
    blank = [replace(row, responses=()) for row in instructions]
    arguments = {
        "model": model.name_or_path,
        "judge": _name(judge),
        "n": n,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "instructions": hashlib.sha256(b"".join(map(encode, blank))).hexdigest(),
    }
    origin = {"model": "/".join(Path(model.name_or_path or "").parts[-2:]), "judge": arguments["judge"]}
    part = out.with_name(f"{out.name}.part")
    with _alone(part), part.open("ab") as file:
        if out.exists():
            raise FileExistsError(f"sample: {out} is there already: choose another name or remove it")
        rows = _begun(part, arguments)
        file.seek(0, os.SEEK_END)
        if file.tell() == 0:
            _append(file, _header(arguments))
        for row in tqdm(blank[len(rows) :], "sample", len(blank), initial=len(rows), unit="prompt", disable=None):
            texts = _draw(model, tokenizer, row, n, temperature, max_new_tokens, seed)
            responses = _judged(judge, row.instruction, texts)
            rows.append(replace(row, responses=responses, extra={**row.extra, **origin}))
            _append(file, encode(rows[-1]))
        write_lists(out, rows)
        part.unlink()
    if empty := n * len(rows) - sum(response.extra.get("count", 1) for row in rows for response in row.responses):
        warnings.warn(f"sample: dropped {empty} responses without text", stacklevel=2)
    return rows


@contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Held by one process at a time; given back when that one dies. Raises ValueError where another one has it."""
    lock = FileLock(part.with_name(f".{part.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"sample: another process writes to {part}") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # still held: who waited for it would find its work done, or begun
        lock.release()


def _begun(part: Path, arguments: dict[str, Any]) -> list[LabelledList]:
    """The rows of an earlier call; what it was writing when it ended is cut off."""
    if not part.exists():
        return []
    written = part.read_bytes()
    header, *lines = written[: written.rfind(b"\n") + 1].splitlines(keepends=True) or [b""]
    if header and header != _header(arguments):
        begun = _arguments(header)
        other = sorted(name for name in arguments if begun.get(name) != arguments[name])
        raise ValueError(f"sample: {part} was begun with other {', '.join(other)}: remove it or give the same again")
    os.truncate(part, len(header) + sum(map(len, lines)))
    return [decode(line) for line in lines]


def _header(arguments: dict[str, Any]) -> bytes:
    return json.dumps(arguments).encode() + b"\n"


def _arguments(header: bytes) -> dict[str, Any]:
    """Of a part; none where the file is no part."""
    try:
        begun = strict_json.loads(header)
    except ValueError:
        return {}
    return begun if isinstance(begun, dict) else {}


def _append(file: Any, line: bytes) -> None:
    """On the disk when this returns."""
    file.write(line)
    file.flush()
    os.fsync(file.fileno())


def _draw(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    row: LabelledList,
    n: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
) -> list[str]:
    """n responses; the random state of the process is left as it was."""
    ids = torch.tensor([prompts.encode("sample", tokenizer, row.instruction)], device=model.device)
    pad = model.generation_config.pad_token_id
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(hashlib.sha256(f"{seed} {row.id}".encode()).digest()[:8], "big"))
        sequences = cast("Any", model).generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            num_return_sequences=n,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id if pad is None else pad,
        )
    return [text.strip() for text in tokenizer.batch_decode(sequences[:, ids.shape[1] :], skip_special_tokens=True)]


def _judged(judge: Judge, instruction: str, texts: list[str]) -> tuple[LabelledResponse, ...]:
    """Each text once, in the order drawn."""
    same: dict[str, list[str]] = {}
    for text in texts:
        if text:
            same.setdefault(" ".join(text.split()), []).append(text)
    unique = [group[0] for group in same.values()]
    labels = list(judge(instruction, unique)) if unique else []
    if len(labels) != len(unique) or not all(label is None or label in (0, 1) for label in labels):
        raise ValueError(f"sample: judge must return True, False or None for each of {len(unique)} texts, got {labels}")
    return tuple(
        LabelledResponse(
            group[0], None if label is None else bool(label), {"count": len(group)} if len(group) > 1 else {}
        )
        for group, label in zip(same.values(), labels, strict=True)
    )


def _name(judge: Judge) -> str:
    return str(getattr(judge, "name", None) or getattr(judge, "__qualname__", None) or type(judge).__qualname__)
