"""Study of the quickstart: train a small model, give a real one a memory, and measure both.

python -m launch.study --config=configs/studies/quickstart.py [--samples-dir=DIR]
`make quickstart` runs it. 2 CPU cores: under 8 minutes. Expected: open-book accuracy above
closed-book in every popularity bin; runs/quickstart/report.html.
Variant "tiny": the same stages with 60 cities and 20 questions, two minutes.
"""

import ml_collections

from lm.data.samples import directory

TRAINED_ON = "{samples}/speeches/1[78]*.txt,{samples}/speeches/1900*.txt"
LATER = {  # every fifth year up to 2000, and all years after
    "1901-1950": (
        "{samples}/speeches/1905*.txt,{samples}/speeches/19[1-4][05]*.txt,"
        "{samples}/speeches/1950*.txt"
    ),
    "1951-2000": (
        "{samples}/speeches/1955*.txt,{samples}/speeches/19[6-9][05]*.txt,"
        "{samples}/speeches/2000*.txt"
    ),
    "2001-": "{samples}/speeches/200[1-9]*.txt,{samples}/speeches/20[1-9]*.txt",
}
PERIODS = {period: "{workdir}/bits/" + period.strip("-") + ".json" for period in LATER}
READER = "{samples}/smollm2-135m-instruct.gguf"


def get_config(variant=""):
    if variant not in ("", "tiny"):
        raise ValueError(f"variant {variant!r} is unknown; this config has 'tiny'")
    tiny = variant == "tiny"
    c = ml_collections.ConfigDict()
    c.name = "quickstart-tiny" if tiny else "quickstart"
    c.samples_dir = str(directory())  # --samples-dir overrides it
    c.stages = (
        dict(
            name="samples",
            about="real models and texts, checked",
            seconds=15,
            module="lm.data.samples",
            args={"samples-dir": "{samples}"},
            outputs=[READER]
            + ["{samples}/" + name for name in ("minilm", "geonames", "elements.db", "speeches")],
        ),
        dict(
            name="tokenizer",
            about="byte-pair tokens from the speeches to 1900",
            seconds=6,
            module="lm.train_tokenizer",
            args={"input": TRAINED_ON, "vocab_size": 2048, "output": "{workdir}/tokenizer"},
            inputs=["{samples}/speeches"],
            outputs=["{workdir}/tokenizer"],
        ),
        dict(
            name="pretrain",
            about="a small decoder from scratch on the same speeches",
            seconds=100,
            module="lm.train",
            args={
                "config": "configs/quickstart_pretrain.py" + (":tiny" if tiny else ""),
                "workdir": "{workdir}/pretrain",
                "config.tokenizer": "{workdir}/tokenizer",
                "config.data.files": TRAINED_ON,
            },
            inputs=["{workdir}/tokenizer", "{samples}/speeches"],
            outputs=["{workdir}/pretrain", "{workdir}/pretrain/metrics.jsonl"],
        ),
        *(
            dict(
                name=f"evaluate-{period.strip('-')}",
                about=f"its bits per byte on speeches of {period}",
                seconds=15,
                module="lm.evaluate",
                args={
                    "model": "{workdir}/pretrain",
                    "data": LATER[period],
                    "length": 128,
                    "json": file,
                    "max-rows": 8 if tiny else 0,
                },
                inputs=["{workdir}/pretrain", "{samples}/speeches"],
                outputs=[file],
            )
            for period, file in PERIODS.items()
        ),
        dict(
            name="passages",
            about="a passage for each city, country and element, and questions",
            seconds=4,
            module="launch.quickstart.passages",
            args={"samples-dir": "{samples}", "workdir": "{workdir}"}
            | ({"cities": 60, "per-bin": 2} if tiny else {}),
            inputs=["{samples}/geonames", "{samples}/elements.db"],
            outputs=["{workdir}/passages.jsonl", "{workdir}/questions.jsonl"],
        ),
        dict(
            name="memory",
            about="embedded by MiniLM, indexed by ScaNN, stored in Lance",
            seconds=70,
            module="retrieval.build",
            args={
                "memory": "{workdir}/memory",
                "encoder": "{samples}/minilm",
                "input": "{workdir}/passages.jsonl",
                "replace": True,
            },
            inputs=["{workdir}/passages.jsonl", "{samples}/minilm"],
            outputs=["{workdir}/memory"],
        ),
        dict(
            name="ask",
            about="every question closed-book and open-book",
            seconds=150,
            module="retrieval.evaluate",
            args={
                "memory": "{workdir}/memory",
                "reader": READER,
                "questions": "{workdir}/questions.jsonl",
                "output": "{workdir}/answers.jsonl",
            },
            inputs=["{workdir}/memory", READER, "{workdir}/questions.jsonl"],
            outputs=["{workdir}/answers.jsonl"],
        ),
        dict(
            name="edits",
            about="one fact edited, one deleted, both undone",
            seconds=20,
            module="launch.quickstart.edits",
            args={
                "memory": "{workdir}/memory",
                "reader": READER,
                "answers": "{workdir}/answers.jsonl",
                "output": "{workdir}/edits.json",
            },
            inputs=["{workdir}/memory", READER, "{workdir}/answers.jsonl"],
            outputs=["{workdir}/edits.json"],
        ),
        dict(
            name="report",
            about="report.html, report.md and the picture",
            seconds=2,
            module="launch.quickstart.report",
            args={"workdir": "{workdir}"},
            inputs=[
                "{workdir}/answers.jsonl",
                "{workdir}/edits.json",
                "{workdir}/pretrain/metrics.jsonl",
                *PERIODS.values(),
            ],
            outputs=["{workdir}/report.html", "{workdir}/report.md", "{workdir}/popularity.svg"],
        ),
    )
    return c
