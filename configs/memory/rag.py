"""RAG-Token and RAG-Sequence (Lewis et al. 2020), at inference or trained end to end.

python -m launch.study --config=configs/memory/rag.py[:sequence|:trained]
Asks about cities, countries and elements from a memory of their passages, and audits whether the
score comes from the memory: answers.jsonl has a row for each question.
Reader: SmolLM2-135M-Instruct. Variants: sequence (sequence-tiny), RAG-Sequence as it is; trained
(trained-tiny), RAG-Sequence whose reader and encoder of questions learn from other questions first
(configs/memory/open_book.py), with the vectors of passages as they are. Other readers, which are
downloaded: mamba, bart or t5, as in ":mamba" and ":sequence,t5".
Hardware: 2 CPU cores, a GPU to train. Not run here.

:tiny asks eight questions of models of bytes that were trained for four steps, on a CPU. Their
answers are not right; it shows that every stage runs. It is ":tiny,t5" for another reader.
"""

from configs.memory.chain import chain


def get_config(variant=""):
    if variant.startswith("trained"):
        return chain("rag-sequence", "rag_sequence", variant)
    kind, comma, reader = variant.partition(",")
    method, _, size = kind.rpartition("-")
    if "sequence" in (method, size):
        return chain("rag-sequence", "rag_sequence", f"{size if method else ''}{comma}{reader}")
    return chain("rag-token", "rag_token", variant)
