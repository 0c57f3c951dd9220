"""Build or update a memory from files.

python -m retrieval.build --memory=DIR --encoder=PATH --input docs
"""

import sys
from pathlib import Path

from retrieval.cli import add_encoder_option, add_record_options, entry_point, parser
from retrieval.measures import corpus

ABOUT = (
    "Build a memory from files, folders and data sets, or bring one up to date: "
    "what is unchanged is not embedded again."
)
FORMATS = (
    "Text (.txt: a passage a paragraph), Markdown, HTML, PDF; .jsonl, .json, .csv, .tsv, .parquet, "
    "tfds:NAME[:SPLIT] and\nhf:NAME[:SPLIT], whose rows have text (required), id, title, source, "
    "time, tags, access, metadata. .gz, gs:// and s3:// too. Folders are\nread recursively, links "
    "in them are not followed. Up to 4,096 passages make a commit; an interrupted build goes on "
    "when it is run again."
)


@entry_point
def main(argv=None):
    options = parser("retrieval.build", ABOUT, FORMATS)
    options.add_argument(
        "--input", nargs="+", default=[], metavar="PATH", help="files, folders, globs, data sets"
    )
    options.add_argument(
        "--beir",
        type=Path,
        metavar="FOLDER",
        help="instead of --input: the corpus.jsonl of a BEIR folder, passages named by its _id",
    )
    add_encoder_option(options)
    embed = options.add_argument_group(
        "how texts become vectors",
        "by default as the encoder's folder says; a memory keeps to its own",
    )
    embed.add_argument(
        "--pooling",
        choices=("mean", "first", "last"),
        help="the tokens a text's vector is made from",
    )
    embed.add_argument(
        "--query-prefix", metavar="TEXT", help="put before what is searched for, such as 'query: '"
    )
    embed.add_argument(
        "--passage-prefix", metavar="TEXT", help="put before every passage, such as 'passage: '"
    )
    embed.add_argument(
        "--dim", type=int, help="keep only so many coordinates, of a Matryoshka encoder"
    )
    embed.add_argument("--dtype", choices=("float32", "bfloat16"), help="what is computed in")
    cut = options.add_argument_group("passages")
    ways = ("auto", "headings", "sentences", "tokens", "none")
    cut.add_argument(
        "--chunk",
        default="auto",
        choices=ways,
        help="what passages are cut by; auto: text by sentences, others by headings",
    )
    cut.add_argument(
        "--size", type=int, help="most tokens of a passage (default: what the encoder sees)"
    )
    cut.add_argument(
        "--overlap",
        type=int,
        default=0,
        help="most tokens that a passage repeats of the one before",
    )
    cut.add_argument(
        "--text-field",
        help="field of rows that holds the text (default: text); when given, fields of no other "
        "meaning become metadata",
    )
    cut.add_argument(
        "--id-field",
        default="id",
        help="field of rows that names the passage, such as _id of BEIR's corpora",
    )
    cut.add_argument(
        "--tags",
        nargs="+",
        default=[],
        metavar="WORD",
        help="tags of every passage, with those of its row",
    )
    cut.add_argument(
        "--access",
        default="",
        metavar="GROUP",
        help="the group that may read every passage, whatever its row says",
    )
    wrong = options.add_argument_group("what is left out")
    wrong.add_argument(
        "--max-bad-share",
        type=float,
        default=0.0,
        help="share of documents and rows that may be unreadable",
    )
    wrong.add_argument("--max-megabytes", type=float, default=100, help="largest file, but of rows")
    wrong.add_argument(
        "--drop-duplicates",
        action="store_true",
        help="leave out passages that repeat another, or nearly (Jaccard >= 0.8)",
    )
    change = options.add_argument_group("what changes")
    change.add_argument(
        "--sync",
        action="store_true",
        help="remove passages that are no longer in the files and folders given",
    )
    change.add_argument(
        "--replace",
        action="store_true",
        help="build anew; the memory there, history and all, gives way when that is done",
    )
    change.add_argument(
        "--reembed",
        action="store_true",
        help="embed what is there with another --encoder, or other options of it, in one commit",
    )
    change.add_argument(
        "--dry-run", action="store_true", help="say what would change, and change nothing"
    )
    add_record_options(options)
    args = options.parse_args(argv)
    if not 0 <= args.max_bad_share <= 1:
        options.error(f"--max-bad-share={args.max_bad_share:g}: expected a share, 0 to 1")
    if not 0 < args.max_megabytes < 1e6:
        options.error(
            f"--max-megabytes={args.max_megabytes:g}: expected more than 0 and less than a million"
        )
    if args.beir:
        if args.input or args.reembed or args.id_field != "id" or args.text_field:
            options.error(
                "--beir says what is read and how: leave out --input, --reembed, --id-field and "
                "--text-field"
            )
        args.input, args.id_field = [str(corpus(args.beir))], "_id"
        args.text_field = "text"  # other fields of a row become metadata
    if args.reembed == bool(args.input):
        options.error("give one of --input=PATH ..., --beir=FOLDER and --reembed")
    names = ("pooling", "query_prefix", "passage_prefix", "dim", "dtype")
    args.embedding = {
        name: getattr(args, name) for name in names if getattr(args, name) is not None
    }
    if args.reembed and not (args.encoder or args.embedding):
        options.error(
            "--reembed needs what is new: --encoder=PATH, or another option of the encoder, such "
            "as --dim"
        )
    idle = (
        "chunk",
        "size",
        "overlap",
        "text_field",
        "id_field",
        "tags",
        "access",
        "drop_duplicates",
        "sync",
        "replace",
    )
    if args.reembed and (
        given := [name for name in idle if getattr(args, name) != options.get_default(name)]
    ):
        options.error(
            f"--{given[0].replace('_', '-')} says how files are read: --reembed reads none"
        )
    if args.dry_run and (args.replace or args.reembed):
        options.error(
            "--dry-run compares files with a memory: it does not go with --replace or --reembed"
        )
    from retrieval.ingest import building

    building.reembed(args) if args.reembed else building.build(args)


if __name__ == "__main__":
    sys.exit(main())
