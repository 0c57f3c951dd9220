"""Changes a memory and shows its history: python -m retrieval.edit --memory=DIR --edit=ID --text="..." | --delete | --undo | --log"""

import dataclasses
import json
import sys

from retrieval.cli import add_encoder_option, entry_point, open_memory, parser


def show(commit, as_json: bool) -> None:
    if as_json:
        print(json.dumps(dataclasses.asdict(commit), ensure_ascii=False))
        return
    ids = ", ".join(commit.ids[:3]) + (f" and {len(commit.ids) - 3:,} more" if len(commit.ids) > 3 else "")
    print(
        f"{commit.version:>6}  {commit.time}  {commit.author}  {commit.action:<6}  {ids}{'  # ' + commit.reason if commit.reason else ''}"
    )


@entry_point
def main(argv=None):
    options = parser("retrieval.edit", "Edit, delete or undo, each as one commit, or show the log of all commits.")
    what = options.add_mutually_exclusive_group(required=True)
    what.add_argument("--edit", metavar="ID", help="replace the text of this passage by --text")
    what.add_argument("--delete", metavar="ID", nargs="+", help="remove these passages")
    what.add_argument("--undo", action="store_true", help="restore the state before the latest change not yet undone")
    what.add_argument("--log", action="store_true", help="show every commit")
    what.add_argument("--show", metavar="ID", help="show one passage")
    options.add_argument("--text", help="the new text, with --edit")
    options.add_argument("--as-of", type=int, metavar="VERSION", help="with --show or --log: the memory as it was after this version")
    options.add_argument("--author", help="recorded in the log (default: the user's name)")
    options.add_argument("--reason", default="", help="recorded in the log")
    add_encoder_option(options)
    args = options.parse_args(argv)
    if (args.edit is None) != (args.text is None):
        options.error("--edit=ID and --text=TEXT go together")
    if args.as_of is not None and not (args.log or args.show):
        options.error("--as-of shows the past, which cannot be changed: use it with --show or --log")
    memory = open_memory(args.memory, args.encoder)
    memory = memory if args.as_of is None else memory.as_of(args.as_of)
    if args.show:
        passage = memory.get(args.show)
        print(
            json.dumps(dataclasses.asdict(passage), ensure_ascii=False) if args.json else f"{passage.id}  {passage.title}\n{passage.text}"
        )
    elif args.log:
        for commit in memory.log():
            show(commit, args.json)
    elif args.undo:
        show(memory.undo(args.author, args.reason), args.json)
    elif args.delete:
        show(memory.delete(args.delete, args.author, args.reason), args.json)
    else:
        show(memory.edit(args.edit, args.text, author=args.author, reason=args.reason), args.json)


if __name__ == "__main__":
    sys.exit(main())
