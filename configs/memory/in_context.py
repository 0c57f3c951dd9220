"""Passages before the question, searched again while answering (In-Context RALM, Ram et al. 2023).

python -m launch.study --config=configs/memory/in_context.py[:READER]
Asks about cities, countries and elements from a memory of their passages, and audits whether the
score comes from the memory: answers.jsonl has a row for each question.
Reader: SmolLM2-135M-Instruct. READER, which is downloaded: mamba, bart, t5, or spans, a DistilBERT
that marks answers (configs/memory/chain.py names them).
Hardware: 2 CPU cores. Seen with 60 of the 200 questions: the country is named for 20 %
closed-book and for 97 % with passages (docs/memory_doors.md).

:tiny asks eight questions of models of bytes that were trained for four steps, on a CPU. Their
answers are not right; it shows that every stage runs. It is ":tiny,READER" for others, of which
classes, an encoder that names one of a few classes, is only there.
"""

from configs.memory.chain import chain


def get_config(variant=""):
    if variant.rpartition(",")[2] in ("spans", "classes"):
        # They write no tokens to search again after.
        return chain("in_context", "in_context", variant, readers=("spans", "classes"))
    return chain("in_context", "in_context,stride=8", variant)
