"""RAG-Token and RAG-Sequence at inference (Lewis et al. 2020); the retriever is not trained.

python -m launch.study --config=configs/memory/rag.py[:sequence]
Asks about cities, countries and elements from a memory of their passages, and audits whether the
score comes from the memory: answers.jsonl has a row for each question.
Reader: SmolLM2-135M-Instruct. Variant sequence (sequence-tiny): RAG-Sequence.
Hardware: 2 CPU cores. Not run here.

:tiny asks eight questions of models of bytes that were trained for four steps, on a CPU. Their
answers are not right; it shows that every stage runs.
"""

from configs.memory.chain import chain


def get_config(variant=""):
    method, _, size = variant.rpartition("-")
    if "sequence" in (method, size):
        return chain("rag-sequence", "rag_sequence", size if method else "")
    return chain("rag-token", "rag_token", variant)
