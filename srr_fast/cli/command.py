# SPDX-License-Identifier: Apache-2.0
"""The ``srr-fast`` command."""

from __future__ import annotations

import argparse
import io
import os
import select
import sys
from typing import NoReturn

from . import evaluate, extract, lists, options, serve, shards, train

FORMATS = ("text", "json", "jsonl")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    """The command line; a subcommand's modules are imported when it runs."""
    parser = _Parser(prog="srr-fast", description="Choose the safest of N answers of a language model.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="best-of-N on the bundled model or on yours")
    _add_model(demo)
    demo.add_argument("--n", type=_positive, default=16, help="candidates per prompt (%(default)s)")
    demo.add_argument("--prompts", type=_positive, default=60, metavar="K", help="held-out prompts (%(default)s)")
    demo.add_argument("--prompt", nargs="+", type=_text, metavar="TEXT", help="your own prompts instead")
    demo.add_argument(
        "--tables", type=_not_negative, default=4, metavar="K", help="prompts shown in full (%(default)s)"
    )
    demo.add_argument("--max-new-tokens", type=_positive, default=64, metavar="T", help="per candidate (%(default)s)")
    options.add_seed(demo)
    demo.set_defaults(run=_demo, parser=demo)

    rank = commands.add_parser("rank", help="rank given answers to an instruction, best first")
    _add_model(rank)
    rank.add_argument("--instruction", type=_text, metavar="TEXT")
    rank.add_argument(
        "--candidates",
        metavar="FILE|-",
        help='one answer per line, a JSON list, or JSONL of strings or {"text": ...}; blank lines do not count',
    )
    rank.add_argument("--top-k", type=_positive, metavar="K", help="results to print; default: all")
    rank.add_argument("--format", choices=FORMATS, default="text", help="of the output (%(default)s)")
    shards.add_options(rank)
    rank.set_defaults(run=_rank, parser=rank)

    generate = commands.add_parser("generate", help="answer prompts with the safest of N samples")
    _add_model(generate)
    generate.add_argument("prompts", nargs="*", type=_text, metavar="PROMPT")
    generate.add_argument(
        "--input",
        metavar="FILE|-",
        help='prompts instead: one per line, a JSON list, or JSONL of strings, {"prompt": ...} or {"messages": [...]}',
    )
    generate.add_argument("--n", type=_positive, default=16, help="candidates per prompt (%(default)s)")
    generate.add_argument("--min-safety", type=float, metavar="S", help="answer nothing below this safety, in [0, 1]")
    generate.add_argument("--fallback", type=_text, metavar="TEXT", help="what to answer then")
    generate.add_argument(
        "--max-new-tokens", type=_positive, default=256, metavar="T", help="per candidate (%(default)s)"
    )
    generate.add_argument(
        "--prune",
        nargs="+",
        type=_tokens_and_share,
        action="extend",
        default=[],
        metavar="TOKENS:SHARE",
        help="after so many tokens this share of the candidates goes on, the best so far; 32:0.5 64:0.5",
    )
    options.add_seed(generate)
    generate.add_argument("--format", choices=FORMATS, default="text", help="of the output (%(default)s)")
    shards.add_options(generate)
    generate.set_defaults(run=_generate, parser=generate)

    lists.add(commands)
    extract.add(commands)
    train.add(commands)
    evaluate.add(commands)
    server = commands.add_parser("serve", help="answer over HTTP: rerank, chat completions, a page")
    _add_model(server)
    serve.add_options(server)
    server.set_defaults(run=_serve, parser=server)

    env = commands.add_parser("env", help="versions, what was built and what was not")
    env.set_defaults(run=_env, parser=env)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 2 for a fault of the caller, said in one line on stderr; 130 where it
    was interrupted, 141 where its output was closed.

    argv: None is the process's own; then stdin, stdout and stderr are UTF-8 as files are, whatever the locale.
    """
    if argv is None:
        for stream, errors in ((sys.stdin, "strict"), (sys.stdout, "strict"), (sys.stderr, "backslashreplace")):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(encoding="utf-8", errors=errors)
    args = build_parser().parse_args(argv)
    try:
        status = args.run(args) or 0
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except (ImportError, OSError, TypeError, ValueError) as error:
        if isinstance(error, BrokenPipeError) and _stdout_closed():
            if argv is None:  # what is left must not be written at exit either
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        print(f"{args.parser.prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _stdout_closed() -> bool:
    """Whether whoever read the output has gone."""
    try:
        output = select.poll()
        output.register(sys.stdout.fileno(), 0)
        return bool(output.poll(0))  # of a pipe without a reader this says "error", though nothing was asked for
    except (AttributeError, OSError, ValueError):  # no file
        return False


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", metavar="HUB_ID_OR_FOLDER", help="default: the bundled minichat")
    command.add_argument("--ranker", metavar="HUB_ID_OR_FOLDER", help="the ranker for --model")


def _check_model(args: argparse.Namespace) -> None:
    if (args.model is None) != (args.ranker is None):
        args.parser.error("--model and --ranker go together: a ranker reads the states of one model")


def _demo(args: argparse.Namespace) -> None:
    _check_model(args)
    from ..demo import Demo

    Demo(args.model, args.ranker, n=args.n, seed=args.seed, max_new_tokens=args.max_new_tokens).run(
        prompts=args.prompts, texts=args.prompt, tables=args.tables
    )


def _rank(args: argparse.Namespace) -> None:
    _check_model(args)
    if (args.ray is None) == (args.instruction is None or args.candidates is None):
        args.parser.error("wants either --instruction and --candidates, or --ray")
    if args.ray:
        return shards.run(args, top_k=args.top_k)
    from . import texts

    texts.rank(args.model, args.ranker, args.instruction, args.candidates, args.top_k, args.format)


def _generate(args: argparse.Namespace) -> None:
    _check_model(args)
    if bool(args.prompts) + (args.input is not None) + (args.ray is not None) != 1:
        args.parser.error("wants either PROMPT..., --input FILE|- or --ray")
    sampling = {name: getattr(args, name) for name in ("n", "min_safety", "fallback", "prune", "max_new_tokens")}
    if args.ray:
        return shards.run(args, sampling=sampling, seed=args.seed)
    from ..answers import prompt_of
    from . import texts

    texts.generate(
        args.model,
        args.ranker,
        args.prompts or texts.read(args.input, prompt_of),
        args.format,
        args.seed,
        **sampling,
    )


def _serve(args: argparse.Namespace) -> None:
    _check_model(args)
    serve.run(args)


def _env(args: argparse.Namespace) -> int | None:
    from .. import env

    return env.main()


def _text(text: str) -> str:
    """An argument as its bytes say in UTF-8, where an ASCII locale could not read them."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        pass
    try:
        return os.fsencode(text).decode()
    except UnicodeError:
        raise argparse.ArgumentTypeError(f"must be UTF-8, got {text!r}") from None


def _positive(text: str) -> int:
    return options.whole(text, 1)


def _not_negative(text: str) -> int:
    return options.whole(text, 0)


def _tokens_and_share(text: str) -> tuple[int, float]:
    tokens, _, share = text.partition(":")
    try:
        return int(tokens), float(share)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be TOKENS:SHARE, like 32:0.5, got {text!r}") from None
