"""The build command: read and cut files, compare them with a memory, update it, report."""

import argparse
import dataclasses
import shutil
import sys
import time

from retrieval.errors import RetrievalError
from retrieval.ingest import chunking, reading, updates
from retrieval.ingest.documents import Document, Report
from retrieval.ingest.files import covers, covers_names
from retrieval.passages import Passage, check_passages, listed
from retrieval.progress import chunks_with_progress
from retrieval.sanitising import as_json, shown


def build(args: argparse.Namespace) -> None:
    """Create or update a memory from the files given.

    Raises RetrievalError before anything changes.
    """
    started, report = time.monotonic(), Report(args.max_bad_share)
    # Read first: a bad file is reported at once.
    files, documents = reading.read(
        args.input, report, args.text_field, args.max_megabytes, args.id_field
    )
    if args.sync and report.bad:
        raise RetrievalError(
            f"--sync would remove what {report.bad:,} bad documents and rows held: mend them, or "
            "leave out --sync"
        )
    from retrieval import Encoder, Memory
    from retrieval.encoders.encoding import encoder_like, made_with
    from retrieval.index.approximate import needed_megabytes
    from retrieval.store.locations import check_free, exists, recover, replace
    from retrieval.store.store import Store

    place, work = args.memory, args.memory
    recover(place)
    if args.replace:
        if isinstance(place, str):
            raise RetrievalError(
                f"--replace moves folders, which {place} on an object store cannot be: leave it "
                "out and give --sync, which makes the passages of these files the same as they "
                "are now and keeps the history, or build under a new name"
            )
        place = place.resolve()
        if not exists(place):
            check_free(place)
        work = place.with_name(f".{place.name}.building")
        if not exists(work):
            shutil.rmtree(work, ignore_errors=True)
    store = Store.open(work) if exists(work) else None
    known = Store.open(place) if store is None and args.replace and exists(place) else store
    if known is None and not args.encoder:
        raise RetrievalError(f"{place} is a new memory: --encoder=PATH says which encoder to use")
    anew = known is None or (args.replace and args.encoder)
    encoder = (
        Encoder.from_hf(args.encoder, **args.embedding)
        if anew
        else encoder_like(known, args.encoder, **args.embedding)
    )
    # Left by an interrupted build with another encoder.
    if store is not None and args.replace and not made_with(store, encoder):
        shutil.rmtree(work)
        store = None
    memory = None if store is None else Memory.open(work, encoder)
    passages = _passages(documents, args, encoder)
    every = lambda name: True
    covered = (
        (every, every)
        if args.replace
        else (covers(args.input, files), covers_names(args.input, files))
    )
    plan = updates.plan(passages, store, *covered, args.drop_duplicates)
    sync = args.sync or args.replace
    said = lambda line: print(line, file=sys.stderr, flush=True)
    if not args.dry_run:
        memory = Memory.create(work, encoder) if memory is None else memory
        size = len(memory) + len(plan.added)
        kept, most = needed_megabytes(size, Store.open(work).dim)
        if plan.added and most >= 1:
            said(
                f"the index of {size:,} passages takes about {kept:,.0f} MB of memory, "
                f"{most:,.0f} while it is built"
            )
        updates.apply(memory, plan, sync, args.author, args.reason, said)
    counts = {
        "documents": report.documents - report.bad,
        "passages": len(passages),
        "added": len(plan.added),
        "edited": len(plan.edited),
        "removed": len(plan.gone) if sync else 0,
        "unchanged": plan.unchanged,
        "gone": 0 if sync else len(plan.gone),
        "duplicates": len(plan.repeats),
        "bad": report.bad,
        "skipped": dict(report.skipped),
    }
    facts = (
        {"version": 0, "size": 0}
        if memory is None
        else {"version": memory.version, "size": len(memory)}
    )
    facts["seconds"] = time.monotonic() - started
    if args.replace:
        replace(place, work)
    if args.json:
        repeats = [dataclasses.asdict(repeat) for repeat in plan.repeats]
        print(
            as_json(
                {
                    "memory": str(place),
                    "dry_run": args.dry_run,
                    **counts,
                    **facts,
                    "repeats": repeats,
                }
            )
        )
    else:
        print("\n".join(map(shown, _summary(args, plan, report, counts, facts))))


def reembed(args: argparse.Namespace) -> None:
    """Encode every passage with another encoder, in one commit."""
    from retrieval import Encoder, Memory
    from retrieval.encoders.encoding import encoder_like
    from retrieval.store.store import Store

    started, memory, new = time.monotonic(), Memory.open(args.memory), args.embedding
    encoder = (
        Encoder.from_hf(args.encoder, **new)
        if args.encoder
        else encoder_like(Store.open(args.memory), **new)
    )
    memory.reembed(encoder, args.author, args.reason)
    facts = {
        "memory": str(args.memory),
        "version": memory.version,
        "size": len(memory),
        "seconds": time.monotonic() - started,
    }
    print(
        as_json(facts)
        if args.json
        else f"{args.memory}: {facts['size']:,} passages embedded anew in {facts['seconds']:.1f} "
        f"s, version {facts['version']}"
    )


def _passages(documents: list[Document], args: argparse.Namespace, encoder) -> list[Passage]:
    import lm
    from retrieval.encoders import sentence_transformers

    tokenizer = lm.load_tokenizer(sentence_transformers.recalled(encoder.source)[0])
    longest = encoder.max_length - len(tokenizer(encoder.passage_prefix)["input_ids"])
    if args.size is not None and args.size > longest:
        raise RetrievalError(
            f"--size={args.size}: the encoder sees at most {longest} tokens of a passage"
        )
    how = chunking.Chunking(args.chunk, longest if args.size is None else args.size, args.overlap)
    count, tags = chunking.token_counter(tokenizer), tuple(args.tags)
    cut, owners = [], {}
    for part in chunks_with_progress(documents, "cutting into passages", chunk=64, show_from=2048):
        for document in part:
            for passage in chunking.passages(document, how, count):
                if (other := owners.setdefault(passage.id, document.where)) != document.where:
                    raise RetrievalError(
                        f"{document.where}: the id {passage.id!r} is given twice, first in {other}"
                    )
                cut.append(dataclasses.replace(passage, origin=document.origin))
    marked = (
        dataclasses.replace(
            passage,
            tags=tuple(dict.fromkeys(passage.tags + tags)),
            access=args.access or passage.access,
        )
        for passage in cut
    )
    return check_passages(marked)


def _summary(
    args: argparse.Namespace, plan: updates.Plan, report: Report, counts: dict, facts: dict
):
    """Yield report lines: what was done, and what needs attention."""
    changes = ", ".join(
        f"{counts[name]:,} {name}" for name in ("added", "edited", "removed", "unchanged")
    )
    would = "would be " if args.dry_run else ""
    yield (
        f"{args.memory}: {counts['documents']:,} documents, {counts['passages']:,} passages: "
        f"{would}{changes}"
    )
    if not args.dry_run:
        yield (
            f"version {facts['version']}, {facts['size']:,} passages in all, "
            f"{facts['seconds']:.1f} s"
        )
    if report.bad:
        yield (
            f"{report.bad:,} bad documents and rows left out: {'; '.join(report.examples['bad'])}"
        )
    for reason, count in report.skipped.items():
        yield f"{count:,} skipped, {reason}: {listed(report.examples[reason])}"
    if plan.repeats:
        exact = sum(repeat.exact for repeat in plan.repeats)
        shown = "; ".join(
            f"{r.id!r} repeats {r.of!r}" + ("" if r.exact else f" ({r.similarity:.2f})")
            for r in plan.repeats[:3]
        )
        advice = "left out" if args.drop_duplicates else "--drop-duplicates leaves them out"
        yield f"{len(plan.repeats):,} duplicates, {exact:,} exact: {shown}; {advice}"
    if counts["gone"]:
        yield (
            f"{counts['gone']:,} passages are no longer in their files: {listed(plan.gone)}; "
            "--sync removes them"
        )
