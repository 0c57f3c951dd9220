"""Edit or delete passages of a memory.

python -m retrieval.edit --memory=DIR --edit=ID --text="..." | --delete ID ...
"""

import sys

from retrieval.cli import (
    add_encoder_option,
    add_record_options,
    entry_point,
    open_memory,
    parser,
    print_commit,
)


@entry_point
def main(argv=None):
    options = parser(
        "retrieval.edit",
        "Edit or delete passages, as one commit; retrieval.undo takes it back, retrieval.log "
        "shows it.",
    )
    what = options.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--edit",
        metavar="ID",
        help="replace the text of this passage by --text, or other fields of it",
    )
    what.add_argument("--delete", metavar="ID", nargs="+", help="remove these passages")
    options.add_argument(
        "--text", help="the new text, with --edit; it has no span in the source any more"
    )
    options.add_argument("--title", help="the new title; what is not given stays")
    options.add_argument("--source", help="the new source")
    options.add_argument(
        "--time", help="the new time of the content, ISO 8601; UTC where it names no zone"
    )
    options.add_argument(
        "--tag",
        action="append",
        dest="tags",
        metavar="WORD",
        help="the new tags, instead of all it had; repeat it",
    )
    options.add_argument(
        "--access", metavar="GROUP", help="the group that may read it from now on; '' is everybody"
    )
    add_record_options(options)
    add_encoder_option(options)
    args = options.parse_args(argv)
    fields = {
        name: getattr(args, name) for name in ("text", "title", "source", "time", "tags", "access")
    }
    changes = {
        name: tuple(value) if name == "tags" else value
        for name, value in fields.items()
        if value is not None
    }
    if (args.edit is None) == bool(changes):
        options.error("--edit=ID and --text=TEXT, or another field, go together")
    memory = open_memory(args.memory, args.encoder)
    if args.delete:
        print_commit(memory.delete(args.delete, args.author, args.reason), args.json)
    else:
        print_commit(
            memory.edit(args.edit, author=args.author, reason=args.reason, **changes), args.json
        )


if __name__ == "__main__":
    sys.exit(main())
