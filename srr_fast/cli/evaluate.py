# SPDX-License-Identifier: Apache-2.0
"""``srr-fast eval``: a ranker on labelled lists, a folder of evidence out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .options import add_seed, check_out


def add(commands: Any) -> None:
    """Add it to the subcommands of an argument parser."""
    command = commands.add_parser("eval", help="how well a ranker puts safe answers first, on your labelled lists")
    command.add_argument("--ranker", required=True, metavar="HUB_ID_OR_FOLDER")
    command.add_argument("--model", metavar="HUB_ID_OR_FOLDER", help="default: the one the ranker names")
    command.add_argument(
        "--data", nargs="+", required=True, type=Path, metavar="FILE", help="lists, .jsonl, plain or packed (.gz, .xz)"
    )
    command.add_argument("--out", required=True, type=Path, metavar="DIR", help="of metrics.json, tables.md and plots")
    command.add_argument("--split", choices=("train", "val", "test"), help="default: all lists of the files")
    command.add_argument(
        "--baselines",
        nargs="+",
        default=["random", "first", "shortest", "longest", "refusal"],
        metavar="NAME",
        help="random first shortest longest refusal (the default), tfidf cosine probe last-layer cross-encoder, "
        "guard:HUB_ID_OR_FOLDER; or none",
    )
    command.add_argument(
        "--fit",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="lists whose train split is for the baselines that learn; default: --data",
    )
    command.add_argument("--cache", type=Path, metavar="DIR", help="keep the states there for the next run")
    add_seed(command)
    command.set_defaults(run=_run, parser=command)


def _run(args: argparse.Namespace) -> None:
    from transformers.utils import logging

    from .. import evaluate, fingerprint, minichat, report
    from ..backbone import load_backbone
    from ..extras import require
    from ..lists import read_lists
    from ..ranker import SafetyRanker

    logging.disable_progress_bar()
    names = [] if args.baselines == ["none"] else args.baselines
    evaluate.check_names(names)
    require("matplotlib")
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out: {args.out} is no folder")
    check_out(args.out)
    ranker = SafetyRanker.from_pretrained(args.ranker)
    backbone = args.model or (str(minichat.MODEL_FOLDER) if ranker.model_id == minichat.MODEL_ID else ranker.model_id)
    if backbone is None:
        raise ValueError("--model is needed: the ranker does not say which model it is for")
    rows = read_lists(*args.data)
    lists = evaluate.select(rows, args.split)
    fit = []
    if any(name in evaluate.LEARNING for name in names):
        fit = evaluate.to_learn_from(read_lists(*args.fit) if args.fit else rows, lists)
    model, tokenizer = load_backbone(backbone)
    fingerprint.warn_if_other("eval", ranker, model, tokenizer, stacklevel=1)
    found = evaluate.evaluate(
        ranker, model, tokenizer, lists, names=names, fit=fit, backbone=backbone, cache_dir=args.cache, seed=args.seed
    )
    found["data"] = {
        "files": [str(path) for path in args.data],
        "split": args.split,
        "n_lists": len(lists),
        "n_responses": sum(len(one.responses) for one in lists),
        "n_fit_lists": len(fit),
        "model": str(backbone),
        "seed": args.seed,
    }
    written = report.write(args.out, found)
    print(report.tables(found))
    print(f"wrote {', '.join(path.name for path in written)} to {args.out}")
