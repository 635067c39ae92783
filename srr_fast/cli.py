# SPDX-License-Identifier: Apache-2.0
"""The ``srr-fast`` command."""

from __future__ import annotations

import argparse
import sys


def build_parser() -> argparse.ArgumentParser:
    """The command line; a subcommand's modules are imported when it runs."""
    parser = argparse.ArgumentParser(prog="srr-fast", description="Choose the safest of N answers of a language model.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="best-of-N on the bundled model or on yours")
    demo.add_argument("--model", metavar="HUB_ID_OR_FOLDER", help="default: the bundled minichat")
    demo.add_argument("--ranker", metavar="FOLDER", help="the ranker for --model")
    demo.add_argument("--n", type=_positive, default=16, help="candidates per prompt (%(default)s)")
    demo.add_argument("--prompts", type=_positive, default=60, metavar="K", help="held-out prompts (%(default)s)")
    demo.add_argument("--prompt", nargs="+", metavar="TEXT", help="your own prompts instead")
    demo.add_argument("--tables", type=int, default=4, metavar="K", help="prompts to show in full (%(default)s)")
    demo.add_argument("--max-new-tokens", type=_positive, default=64, metavar="T", help="per candidate (%(default)s)")
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(run=_demo, parser=demo)

    env = commands.add_parser("env", help="versions, what was built and what was not")
    env.set_defaults(run=_env)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = build_parser().parse_args(argv)
    return args.run(args) or 0


def _demo(args: argparse.Namespace) -> None:
    if (args.model is None) != (args.ranker is None):
        args.parser.error("--model and --ranker go together: a ranker reads the states of one model")
    from .demo import Demo

    Demo(args.model, args.ranker, n=args.n, seed=args.seed, max_new_tokens=args.max_new_tokens).run(
        prompts=args.prompts, texts=args.prompt, tables=args.tables
    )


def _env(args: argparse.Namespace) -> int | None:
    from . import env

    return env.main()


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
