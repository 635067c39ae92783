# SPDX-License-Identifier: Apache-2.0
"""``srr-fast train``: labelled lists in, a ranker with its metrics and curves out."""

from __future__ import annotations

import argparse
import glob
import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import add_seed, check_out

if TYPE_CHECKING:
    from ..lists import LabelledList

LAYERS = (1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6)


def add(commands: Any) -> None:
    """Add it to the subcommands of an argument parser."""
    command = commands.add_parser("train", help="fit a ranker to labelled lists")
    command.add_argument(
        "--model", required=True, metavar="HUB_ID_OR_FOLDER", help="whose states it reads: causal model or encoder"
    )
    command.add_argument(
        "--data",
        nargs="+",
        required=True,
        type=Path,
        metavar="FILE",
        help="lists, .jsonl, plain or packed (.gz, .xz): split train to learn from, val to stop and calibrate; rows "
        "without a split are put into one by a hash of the instruction",
    )
    command.add_argument("--out", required=True, type=Path, metavar="DIR", help="of the ranker; must not hold one")
    command.add_argument(
        "--layers",
        nargs="+",
        type=_layer,
        metavar="K",
        help="hidden_states indices, or fractions of the depth such as 0.5; default: five, evenly spaced",
    )
    command.add_argument("--pooling", choices=("mean", "last"), default="mean", help="over the response (%(default)s)")
    command.add_argument(
        "--scope",
        choices=("pair", "list"),
        default="pair",
        help="pair: a score does not depend on the other candidates, and safety is a probability (%(default)s)",
    )
    command.add_argument("--proj-dim", type=int, default=64, metavar="P", help="projected width (%(default)s)")
    command.add_argument("--encoder-layers", type=int, default=1, metavar="N", help="0: projection and cosine alone")
    command.add_argument(
        "--objective",
        choices=("distilled", "listwise", "pairwise", "pointwise"),
        default="distilled",
        help="distilled: from a kernel machine on the same states; listwise: KL, as in the paper (%(default)s)",
    )
    command.add_argument("--epochs", type=int, help="passes over the lists at most (30); not for distilled")
    command.add_argument("--steps", type=int, help="of the optimiser (1000); for distilled alone")
    command.add_argument("--cache", type=Path, metavar="DIR", help="keep the states there for the next run")
    add_seed(command)
    command.set_defaults(run=_run, parser=command)


def _run(args: argparse.Namespace) -> None:
    from transformers.utils import logging

    from .. import evaluate, fingerprint, report
    from ..backbone import is_encoder, load_backbone
    from ..checkpoint import CONFIG_FILE, replace
    from ..config import RankerConfig
    from ..examples import Examples
    from ..extract import extract
    from ..extras import require
    from ..lists import labelled, read_lists
    from ..train import TrainingOptions, train

    logging.disable_progress_bar()
    for module in ("matplotlib", "accelerate"):
        require(module)
    if args.out.exists() and (not args.out.is_dir() or set(args.out.iterdir()) - set(_parts(args.out))):
        raise ValueError(f"--out: {args.out} is there and not an empty folder")
    check_out(args.out)
    options = TrainingOptions(objective=args.objective, steps=args.steps, epochs=args.epochs, seed=args.seed)
    lists = read_lists(*args.data)
    rows, val = (labelled("train", lists, split) for split in ("train", "val"))
    if not rows:
        raise ValueError("train: no list of split train has a labelled response")

    model, tokenizer = load_backbone(args.model)
    text_config = model.config.get_text_config(decoder=True)
    L = text_config.num_hidden_layers
    last = L if is_encoder("train", model) else L - 1
    config = RankerConfig(
        text_config.hidden_size,
        layer=_layers(args.layers, L),
        pooling=args.pooling,
        scope=args.scope,
        proj_dim=args.proj_dim,
        num_layers=args.encoder_layers,
    )
    layers = config.layer_indices(L, last=last)
    with tempfile.TemporaryDirectory() as unkept:
        cache = args.cache or Path(unkept)  # what is extracted to train on is read again to evaluate

        def read(part: list[LabelledList]) -> Examples:
            found = extract(model, tokenizer, part, layers=layers, poolings=[args.pooling], cache_dir=cache)
            return Examples.of(part, [found[k, args.pooling] for k in layers])

        trained = train(config, read(rows), read(val), options)
        ranker = trained.ranker
        ranker.model_id, ranker.model_fingerprint = str(args.model), fingerprint.of_model(model)
        ranker.reading_fingerprint = fingerprint.of_reading(model, tokenizer)
        found = evaluate.evaluate(ranker, model, tokenizer, val, cache_dir=cache, seed=args.seed) if val else None
    ranker.metrics = {
        "objective": options.objective,
        "lists trained on": len(rows),
        "responses trained on": sum(len(row.responses) for row in rows),
        "sources": ", ".join(dict.fromkeys(row.source for row in rows)),
        "seed": args.seed,
    }
    if found is not None:
        ranker.metrics |= {f"validation {name}": found["mean"][name] for name in ("top1", "auc", "n_lists")}
        found["data"] = {"files": [str(path) for path in args.data], "split": "val", "seed": args.seed}

    def write(folder: Path) -> None:
        ranker.save_pretrained(folder)
        replace(folder / "curves.png", report.curves(trained.history))
        if found is not None:
            report.write(folder, found)

    for left in _parts(args.out):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    if not _at_once(args.out, write):
        _one_by_one(args.out, write, last=CONFIG_FILE)
    if found is None:
        warnings.warn("train: no list of split val: nothing stopped the training early or measured it", stacklevel=1)
    else:
        print(report.tables(found))
    print(f"wrote {args.out}")


def _at_once(out: Path, write: Callable[[Path], None]) -> bool:
    """Fill a folder beside ``out`` and rename it to that, also over an empty folder; whether this could be done.

    What is there as a link, a mount, somebody else's or where the caller stands is not replaced.
    """
    there = out.exists()
    if there and (out.is_symlink() or out.is_mount() or out.samefile(".")):
        return False
    part = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    try:
        write(part)
        if there:
            if (old := out.stat()).st_uid != (new := part.stat()).st_uid or old.st_gid != new.st_gid:
                return False
            shutil.copystat(out, part)
        os.replace(part, out)
        return True
    except OSError:
        if not there:
            raise
        return False  # its parent is not ours to write to, or it is a mount that does not look like one
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _one_by_one(out: Path, write: Callable[[Path], None], *, last: str) -> None:
    """Fill a folder in ``out`` and move its files up; ``last`` is the file that makes them a ranker."""
    part = out / f".{uuid.uuid4().hex}"
    try:
        write(part)
        for path in sorted(part.iterdir(), key=lambda path: path.name == last):
            os.replace(path, out / path.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _parts(out: Path) -> list[Path]:
    """Where runs have begun to write: beside ``out``, or in it where it was there."""
    digits = "[0-9a-f]" * 32
    return [*out.parent.glob(f".{glob.escape(out.name)}.{digits}"), *out.glob(f".{digits}")]


def _layers(given: Sequence[int | float] | None, L: int) -> int | float | tuple[int | float, ...]:
    """As asked for; by default five fractions of the depth, fewer where two of them mean one layer."""
    if given:
        return given[0] if len(given) == 1 else tuple(given)
    return tuple({min(max(round(part * L), 1), L - 1): part for part in LAYERS}.values())


def _layer(text: str) -> int | float:
    """An index, or a fraction of the depth."""
    return int(text) if text.isdigit() else float(text)
