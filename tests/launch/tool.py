"""A stage for tests.

    python -m tests.launch.tool --log=FILE [--write=FILE] [--say=TEXT] [--wait=FILE]
        [--stubborn] [--exit=CODE]

Adds a line to --log, writes --write, prints --say and waits until --wait exists. --stubborn ignores
SIGTERM and SIGINT.
"""

import argparse
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser()
    for flag in ("--log", "--write", "--say", "--wait", "--config"):
        parser.add_argument(flag, default="")
    parser.add_argument("--stubborn", action="store_true")
    parser.add_argument("--exit", type=int, default=0)
    args = parser.parse_args()
    if args.stubborn:
        signal.signal(signal.SIGTERM, lambda *_: print("not yet", flush=True))
    with open(args.log, "a") as log:
        log.write(f"{Path(args.write or args.log).stem}\n")
    if args.write:
        Path(args.write).parent.mkdir(parents=True, exist_ok=True)
        Path(args.write).write_text("made\n")
    print(f"terminal: {sys.stdout.isatty()} {sys.stderr.isatty()}", flush=True)
    while args.wait and not Path(args.wait).exists():
        time.sleep(0.02)
    if args.say:
        print(args.say, file=sys.stderr, flush=True)
    return args.exit


if __name__ == "__main__":
    sys.exit(main())
