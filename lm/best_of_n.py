"""Draw several answers to each prompt, reward them, and write the best as data to learn from.

python -m lm.best_of_n --config=configs/grpo.py:tiny --workdir=DIR [--keep=best] [--least=REWARD]
    [--config.init_from=MODEL] [--config.task.group=16] [--config.FIELD=VALUE ...]

  --config    of a policy: its prompts, rewards and sampling; init_from is the model that answers
  --workdir   folder to write:
              answers.jsonl  every prompt with its answers and their rewards
              chosen.jsonl   {prompt, completion, reward}, for the task instruct
              pairs.jsonl    {prompt, chosen, rejected, score_chosen, score_rejected}: the best and
                             the worst answer to a prompt, for dpo, reward and kto
  --keep      best: one answer to a prompt; all: every different one (rejection sampling)
  --least     reward that a kept answer needs; default: any

Answers that did not end are not kept. An interrupted command goes on where it was. Exit codes: 0
success; 2 an error in config, prompts, rewards or model; 130 interrupted.
"""

import argparse
import logging
import math
import sys
from pathlib import Path

from lm.compiled import keep_compiled
from lm.interrupts import entry_point


@entry_point
def main(argv=None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    if {"--help", "-h"} & set(argv):
        print(__doc__.strip())
        return 0
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--keep", default="best")
    parser.add_argument("--least", type=float, default=-math.inf)
    args, rest = parser.parse_known_args(argv)
    keep_compiled()
    from lm.data.read.sources import DataError
    from lm.generation.requests import GenerationError
    from lm.models.config import ConfigError
    from lm.synthesis import best_of_n
    from lm.synthesis.progress import Progress
    from lm.training import command_line
    from lm.weights import WeightsError

    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        config, workdir = command_line.parse(rest)
        say = Progress("lm.best_of_n")
        made = best_of_n.run(config, Path(workdir), args.keep, args.least, say)
    except BrokenPipeError:
        raise
    except (ConfigError, DataError, WeightsError, GenerationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    report = ", ".join(f"{name.replace('_', ' ')} {x:.3g}" for name, x in made.report.items())
    print(
        f"{len(made.chosen)} answers: {Path(workdir) / best_of_n.CHOSEN}\n"
        f"{len(made.pairs)} pairs: {Path(workdir) / best_of_n.PAIRS}\n{report}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
