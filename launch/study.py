"""Run a study, a chain of stages.

python -m launch.study --config=configs/studies/x.py[:variant] [--workdir=runs/x]
    [--samples-dir=DIR]

A study config is a Python file whose get_config() (or get_config(variant)) returns an
ml_collections.ConfigDict or a dict:

    name         str    name of the study
    stages       tuple of dicts, run in this order (below)
    workdir      str    output directory; default runs/<name>; --workdir= overrides it
    samples_dir  str    directory of real samples; default samples; --samples-dir= overrides it

A stage is a dict with these fields. Another field is an error with a suggestion.

    name     str    lower-case letters, digits, - and _; unique in the study
    module   str    entry point under lm., retrieval., launch. or configs., run as
                    `python -m MODULE ARGS`
    args     dict   {"flag": value}: a str or number -> --flag=value; True -> --flag; False and
                    None -> nothing; a list -> the flag once per item. A flag with a dot
                    ("config.steps") is always --flag=value, also for True and False.
             list   or argv itself, ["add", "--k=5", "some text"]
    inputs   tuple  files and directories that must exist when the stage starts (default: none)
    outputs  tuple  files and directories that must exist when it ends (default: none)
    seconds  number expected duration on 2 CPU cores, for the ETA (default 10)
    about    str    one-line description, shown beside the name (default: none)

In args, inputs and outputs, `{workdir}` and `{samples}` are replaced by the two directories. Other
braces are unchanged, but a misspelling of one of these is an error. Paths are relative to the
current directory.

    def get_config():
        c = ml_collections.ConfigDict()
        c.name = "tiny"
        c.stages = (
            dict(
                name="train",
                module="lm.train",
                seconds=90,
                about="a small decoder from scratch",
                args={"config": "configs/tiny.py", "workdir": "{workdir}/train"},
                inputs=("{samples}/speeches.jsonl",),
                outputs=("{workdir}/train/metrics.jsonl",),
            ),
            dict(
                name="evaluate",
                module="lm.evaluate",
                args={"model": "{workdir}/train", "json": "{workdir}/evaluation.json"},
                inputs=("{workdir}/train/metrics.jsonl",),
                outputs=("{workdir}/evaluation.json",),
            ),
        )
        return c

Output: {workdir}/study.json, replaced atomically after every change, and the output of each stage
in {workdir}/logs/<stage>.log. study.json is {"study", "state", "seconds", "stages": [{"name",
"about", "command", "status", "seconds", "bytes", "outputs", "returncode", "error", "log", ...}]}.
status is pending, running, done, failed or interrupted. bytes is the size of the declared outputs.

Resuming: run the same command again. A stage is skipped ("done earlier") when it succeeded and its
command, the values of its configs (--config, with all imports), its inputs and its outputs are
unchanged. An input that an earlier stage makes counts as changed when that stage was run again, any
other input when its content changed. An output file must have the same content; an output directory
must exist, since later stages may add to it. --from=STAGE reruns that stage and all after it.
--only=STAGE reruns only that stage.

Exit codes: 0 success; 1 a stage failed (its last error line and its log are named); 2 an invalid
config or request; 129 closed terminal; 130 Ctrl-C; 143 SIGTERM.
"""

import argparse
import sys
from collections.abc import Sequence

from launch.chain import run_chain
from launch.errors import one_line
from launch.stages import ALLOWED, load_study


@one_line
def main(argv: Sequence[str] | None = None, allowed: Sequence[str] = ALLOWED) -> int:
    """Run the study of the command line; return the exit code. allowed: prefixes of modules."""
    parser = argparse.ArgumentParser(
        prog="launch.study", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--config", required=True, help="study config: FILE.py or FILE.py:variant")
    parser.add_argument(
        "--workdir",
        default="",
        help="where the study writes (default: the config's, else runs/<name>)",
    )
    parser.add_argument(
        "--samples-dir",
        "--samples_dir",
        default="",
        help="where real samples lie or are put (default: the config's, else samples)",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--from",
        dest="start",
        default="",
        metavar="STAGE",
        help="run this stage and all after it again",
    )
    which.add_argument("--only", default="", metavar="STAGE", help="run this stage alone, again")
    args = parser.parse_args(argv)
    study = load_study(args.config, workdir=args.workdir, samples=args.samples_dir, allowed=allowed)
    return run_chain(study, start=args.start, only=args.only)


if __name__ == "__main__":
    sys.exit(main())
