"""Store a teacher's most probable tokens, to distil it without running it (docs/tasks.md).

python -m lm.teacher_outputs --config=FILE.py[:VARIANT] --workdir=DIR --config.task.top_k=K
    [--dtype=float16] [--config.FIELD=VALUE ...]

  --config    of the training run, whose task is distillation; task.teacher names the teacher
  --workdir   folder to write; training then reads it with --config.task.outputs=DIR
  --dtype     of log-probabilities: float32 (default), or float16 for about half the space

The teacher reads every packed row once, and for each position its K most probable tokens, their
log-probabilities at task.temperature and that of all other tokens are written. An interrupted
command goes on at its last shard; a complete folder is verified. Exit codes: 0 success; 2 an error
in config or data; 130 interrupted.
"""

import logging
import sys

from lm.compiled import keep_compiled
from lm.interrupts import entry_point


@entry_point
def main(argv=None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    if {"--help", "-h"} & set(argv):
        print(__doc__.strip())
        return 0
    keep_compiled()
    from lm.data.read.sources import DataError
    from lm.models.config import ConfigError
    from lm.training import command_line, teacher_outputs
    from lm.training.checkpoints import CheckpointError
    from lm.weights import WeightsError

    logging.getLogger("absl").setLevel(logging.ERROR)
    own = [a for a in argv if a.lstrip("-").startswith("dtype=")]
    dtype = own[-1].partition("=")[2] if own else "float32"
    try:
        config, workdir = command_line.parse([a for a in argv if a not in own])
        print(teacher_outputs.write(config, workdir, dtype))
    except BrokenPipeError:
        raise
    except (ConfigError, DataError, WeightsError, CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
