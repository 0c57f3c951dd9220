"""What the entry points share: one clear line on stderr and exit code 2 for what a user can put right."""

import argparse
import functools
import logging
import sys
from collections.abc import Callable
from pathlib import Path


def entry_point(run: Callable[[list[str] | None], None]) -> Callable[..., int]:
    """Wraps `run(argv)` so that a wrong input prints one line and gives 2, and Ctrl-C gives 130."""

    @functools.wraps(run)
    def main(argv: list[str] | None = None) -> int:
        logging.basicConfig(format="%(message)s", level=logging.WARNING)
        try:
            run(argv)
        except (ValueError, OSError) as error:  # RetrievalError, WeightsError and GenerationError are ValueErrors
            print("error: " + " ".join(str(error).split()), file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted: what was committed before stays", file=sys.stderr)
            return 130
        return 0

    return main


def parser(module: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """A parser whose help shows defaults; every memory command has --memory and --json."""
    made = argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, epilog=epilog, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    made.add_argument("--memory", required=True, type=Path, help="folder of the memory")
    made.add_argument("--json", action="store_true", help="print JSON, one object a line")
    return made


def add_encoder_option(made: argparse.ArgumentParser, required: bool = False) -> None:
    note = "" if required else "; by default the one the memory was made with"
    made.add_argument("--encoder", required=required, metavar="PATH", help=f"directory or hub id of a BERT-like sentence encoder{note}")


def open_memory(path: Path, encoder: str | None):
    """The memory at `path`, with the encoder at a path or hub id if one is given."""
    from retrieval import Encoder, Memory

    return Memory.open(path, Encoder.from_hf(encoder) if encoder else None)
