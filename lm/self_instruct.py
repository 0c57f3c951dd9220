"""Make instruction data with a model, from a few tasks written by people (Self-Instruct).

python -m lm.self_instruct --config=configs/self_instruct/generate.py[:alpaca] --workdir=DIR
    [--config.seeds=FILE] [--config.generator=MODEL] [--config.FIELD=VALUE ...]

  --config    fields and their meaning: lm/synthesis/settings.py
  --workdir   folder to write: a file for each step, tasks.jsonl in the format of the seed file,
              report.html and report.json

The steps of Wang et al. 2023 (arXiv 2212.10560): write new instructions, ask which are
classification, write instances, filter. An interrupted command goes on where it was. tasks.jsonl is
what the task `instruct` reads. Exit codes: 0 success; 2 an error in config, seeds or generator; 130
interrupted.
"""

import logging
import sys
import time
from pathlib import Path

from lm.compiled import keep_compiled
from lm.interrupts import entry_point


@entry_point
def main(argv=None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    if {"--help", "-h"} & set(argv):
        print(__doc__.strip())
        return 0
    keep_compiled()
    from lm.generation.requests import GenerationError
    from lm.models.config import ConfigError
    from lm.synthesis import generator, pipeline, report, settings
    from lm.synthesis.progress import Progress
    from lm.training import command_line
    from lm.weights import WeightsError

    logging.getLogger("absl").setLevel(logging.ERROR)
    start = time.monotonic()
    try:
        config, workdir = command_line.parse(argv)
        s = settings.of_config(config.to_dict())
        seeds, bad = settings.read_seeds(s)
        if bad:
            print(f"{len(bad)} seeds left out, the first: {bad[0]}", file=sys.stderr)
        made = generator.load(s.generator, s.seed, s.context, s.batch_size, s.repetition_penalty)
        tools = pipeline.Tools(s, seeds, *made, Path(workdir), Progress("lm.self_instruct"))
        tasks = pipeline.run(tools)
        page = report.write(Path(workdir), tasks, len(bad))
    except BrokenPipeError:
        raise
    except (ConfigError, WeightsError, GenerationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    instances = sum(len(task["instances"]) for task in tasks)
    print(
        f"{len(tasks)} tasks with {instances} instances in {time.monotonic() - start:.0f} s\n"
        f"data: {Path(workdir) / pipeline.TASKS}\nreport: {page}"
    )
    if len(tasks) < s.instructions:
        print(f"fewer than instructions={s.instructions}; the report says why", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
