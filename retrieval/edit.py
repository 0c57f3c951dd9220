"""Changes passages of a memory: python -m retrieval.edit --memory=DIR --edit=ID --text="..." | --delete ID ..."""

import sys

from retrieval.cli import add_encoder_option, add_record_options, entry_point, open_memory, parser, print_commit


@entry_point
def main(argv=None):
    options = parser("retrieval.edit", "Edit or delete passages, as one commit; retrieval.undo takes it back, retrieval.log shows it.")
    what = options.add_mutually_exclusive_group(required=True)
    what.add_argument("--edit", metavar="ID", help="replace the text of this passage by --text")
    what.add_argument("--delete", metavar="ID", nargs="+", help="remove these passages")
    options.add_argument("--text", help="the new text, with --edit")
    options.add_argument("--title", help="the new title, with --edit; by default the old one stays")
    add_record_options(options)
    add_encoder_option(options)
    args = options.parse_args(argv)
    if (args.edit is None) != (args.text is None) or (args.title is not None and args.edit is None):
        options.error("--edit=ID and --text=TEXT go together, and --title=TITLE only with them")
    memory = open_memory(args.memory, args.encoder)
    if args.delete:
        print_commit(memory.delete(args.delete, args.author, args.reason), args.json)
    else:
        print_commit(memory.edit(args.edit, args.text, args.title, author=args.author, reason=args.reason), args.json)


if __name__ == "__main__":
    sys.exit(main())
