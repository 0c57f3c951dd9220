"""Tokenise and pack a config's data into the cache of lm.train, so that training starts at once.

python -m lm.tokenize --config=FILE.py[:VARIANT] --workdir=DIR [--config.FIELD=VALUE ...]

  --workdir   run folder; rows go to its cache/, or to config.data.cache, which runs may share

No accelerator is needed. The cache key is a hash of data, tokenizer, template and code, so only
changed data is packed again. An interrupted command resumes at its current source. Exit codes:
0 success; 2 an error in config or data; 130 interrupted.
"""

import logging
import sys

from lm.interrupts import entry_point


@entry_point
def main(argv=None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    if {"--help", "-h"} & set(argv):
        print(__doc__.strip())
        return 0
    from lm.data.read.sources import DataError
    from lm.models.config import ConfigError
    from lm.training import command_line
    from lm.training.checkpoints import CheckpointError
    from lm.weights import WeightsError

    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        config, workdir = command_line.parse(argv)
        _tokenize(config, workdir)
    except BrokenPipeError:
        raise
    except (ConfigError, DataError, WeightsError, CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _tokenize(config, workdir) -> None:
    from lm.data.read import progress
    from lm.training import scheduled, setup
    from lm.weights.runs import paths

    run = setup.reader(config, paths.resolve(workdir))
    cache = run.cache(config)
    progress.remove_unfinished(cache)
    read = run.parts.sources or {"training": run.parts.main}
    for name, part in {**read, **run.parts.further}.items():
        with progress.shown(name, part.config.data.files) as tally:
            rows = setup.packed(part, run, tally)
        print(progress.summary(name, rows.stats()), flush=True)
    for name, files in scheduled.held_out(config).items():
        with progress.shown(name, files) as tally:
            rows = setup.evaluation_rows(config, run, files, tally)
        print(progress.summary(name, rows.stats()), flush=True)
    print(f"rows are in {cache}")


if __name__ == "__main__":
    sys.exit(main())
