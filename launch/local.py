"""--on=local: run the command on this machine's CPU, GPUs or TPU."""

import os
import shlex
import sys
from collections.abc import Sequence

from launch.errors import LaunchError
from launch.target import this_python


def run_local(command: Sequence[str], dry_run: bool = False) -> int:
    """Replace this process by the command (exec); `python` becomes the current interpreter.

    So signals, terminal and exit code are the command's own. Returns only from a dry run. Raises
    LaunchError when the command cannot be run.
    """
    argv = this_python(command)
    if dry_run:
        print(shlex.join(argv))
        return 0
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        raise LaunchError(
            f"{argv[0]!r} cannot be run: {error.strerror}; expected a program, such as python -m "
            "lm.train ..."
        ) from error
