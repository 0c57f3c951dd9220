"""Shared parts of the entry points: options, errors as one line on stderr, exit codes."""

import argparse
import dataclasses
import functools
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from lm import phases
from lm.compiled import keep_compiled
from lm.interrupts import Interrupts
from lm.printing import program
from retrieval import progress
from retrieval.sanitising import as_json, shown

READER = (
    "run folder, directory, hub id or .gguf file of a decoder, an encoder-decoder, or an encoder "
    "that marks answer spans or names classes"
)


def entry_point(run: Callable[[list[str] | None], int | None]) -> Callable[..., int]:
    """Wrap `run(argv)` as an entry point.

    Exit codes: 2 with one line on stderr for a wrong input, 130 for Ctrl-C, 141 if the reader of a
    pipe stops early, else what `run` returns, or 0.
    """

    @functools.wraps(run)
    def main(argv: list[str] | None = None) -> int:
        logging.basicConfig(format="%(message)s", level=logging.WARNING)
        progress.logger.setLevel(logging.INFO)
        keep_compiled()
        try:
            with Interrupts(kept="what was committed before stays"), phases.spoken(argv):
                code = run(argv) or 0
            sys.stdout.flush()
            return code
        except BrokenPipeError:  # such as `| head`
            # Python flushes stdout once more when it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        # RetrievalError, WeightsError and GenerationError are ValueErrors.
        except (ValueError, OSError) as error:
            print(f"error: {shown(error)}", file=sys.stderr)
            return 2
        except KeyboardInterrupt as stopped:
            print(
                stopped if str(stopped) else "interrupted: what was committed before stays",
                file=sys.stderr,
            )
            return 130

    return main


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Show a default if there is one and the help text does not name it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        none = action.default is None or action.default is False or action.default in ("", [])
        return (
            action.help
            if none or "(default" in (action.help or "")
            else super()._get_help_string(action)
        )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """Exit with one line, as for every other error."""
        self.exit(2, f"error: {message} ({self.prog} --help lists the options)\n")


def bare_parser(module: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """Return a parser whose help shows defaults, without options."""
    return _Parser(
        prog=program(module), description=description, epilog=epilog, formatter_class=_Help
    )


def parser(module: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """Return a parser for a memory command, with --memory and --json."""
    made = bare_parser(module, description, epilog)
    made.add_argument(
        "--memory",
        required=True,
        type=place,
        help="folder of the memory, or its URI on an object store",
    )
    made.add_argument("--json", action="store_true", help="print JSON, one object a line")
    return made


def add_encoder_option(made: argparse.ArgumentParser, required: bool = False) -> None:
    note = "" if required else "; by default the one the memory was made with"
    made.add_argument(
        "--encoder",
        required=required,
        metavar="PATH",
        help=f"directory or hub id of an encoder or decoder{note}",
    )


def add_record_options(made: argparse.ArgumentParser) -> None:
    made.add_argument("--author", help="recorded in the log (default: the user's name)")
    made.add_argument("--reason", default="", help="recorded in the log")


def print_commit(commit, in_json: bool) -> None:
    """Print one line: version, time, author, action, the first ids, reason."""
    if in_json:
        print(as_json(dataclasses.asdict(commit)))
        return
    ids = ", ".join(commit.ids[:3]) + (
        f" and {len(commit.ids) - 3:,} more" if len(commit.ids) > 3 else ""
    )
    reason = f"  # {shown(commit.reason)}" if commit.reason else ""
    print(
        f"{commit.version:>6}  {commit.time}  {shown(commit.author)}  {commit.action:<6}  "
        f"{shown(ids)}{reason}"
    )


def add_reader_options(made: argparse.ArgumentParser) -> None:
    made.add_argument("--reader", required=True, metavar="PATH", help=READER)
    add_door_option(made)
    made.add_argument("-k", type=int, default=3, help="passages to retrieve for each question")
    made.add_argument(
        "--max-new-tokens", type=int, default=24, help="length of an answer, in tokens"
    )


def add_door_option(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--door",
        default="",
        metavar="NAME[,OPTION=VALUE]",
        help="how passages reach the reader: in_context, replug, rag_token, rag_sequence or fid "
        "(default: that of the reader's run, else in_context)",
    )


def add_when_options(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--floor",
        type=float,
        help="does not know when the best passage scores less, a cosine (default: 0.25)",
    )
    made.add_argument(
        "--when",
        default="",
        metavar="NAME[,OPTION=VALUE]",
        help="read passages only for some questions: confidence,below=0.5 (likelihood of the "
        "closed-book answer per token), popularity,below=10[,field=NAME] (default: for all)",
    )


def add_past_option(made: argparse._ActionsContainer) -> None:
    made.add_argument(
        "--as-of",
        type=version_or_time,
        metavar="VERSION",
        help="the memory as it was after this version, or at this time (2026-03-01T12:00+02:00; "
        "UTC where it names no zone)",
    )


def place(text: str) -> Path | str:
    return text if "://" in text else Path(text)


def add_filter_options(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--tag", action="append", default=[], help="only passages with this tag; repeat it for more"
    )
    where = "only passages with this metadata; repeat it for more"
    made.add_argument(
        "--where", action="append", default=[], type=named, metavar="NAME=VALUE", help=where
    )
    made.add_argument(
        "--after",
        default="",
        metavar="TIME",
        help="only passages of this time (ISO 8601; UTC where it names no zone) or later",
    )
    made.add_argument(
        "--before",
        default="",
        metavar="TIME",
        help="only passages of before this time (ISO 8601; UTC where it names no zone)",
    )
    made.add_argument(
        "--group",
        action="append",
        default=[],
        help="an access group of who asks, beside what everybody may read; repeat it",
    )
    made.add_argument(
        "--every-group",
        action="store_true",
        help="ask as the owner, who may read the passages of every access group",
    )


def named(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=VALUE, such as author=Ada")
    return name, value


def filter_options(args: argparse.Namespace) -> dict:
    """Return the arguments of `Memory.search` for these options."""
    from retrieval import EVERY_GROUP, Filter

    where = Filter(
        all_tags=tuple(args.tag), after=args.after, before=args.before, metadata=dict(args.where)
    )
    return {"where": where, "groups": EVERY_GROUP if args.every_group else args.group}


def version_or_time(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


@phases.phase("opening the memory")
def open_memory(
    path: Path | str, encoder: str | None, as_of: int | str | None = None, reader: str = ""
):
    """Open the memory at `path`, or as it was after a version or at a time.

    encoder: where its encoder's files are, as a path or hub id, if not at the recorded path.
    reader: if this is a run that trained an encoder of questions, they are embedded with it.
    """
    from retrieval import Memory
    from retrieval.encoders.encoding import encoder_like
    from retrieval.encoders.two_sided import with_retriever
    from retrieval.store.store import Store

    store = Store.open(path)
    own = with_retriever(store, reader, encoder) if reader else None
    if own is None and encoder:
        own = encoder_like(store, encoder)
    memory = Memory.open(path, own)
    return memory if as_of is None else memory.as_of(as_of)
