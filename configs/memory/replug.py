"""REPLUG: a prompt for each passage, and next-token probabilities mixed (Shi et al. 2023).

python -m launch.study --config=configs/memory/replug.py[:READER]
Asks about cities, countries and elements from a memory of their passages, and audits whether the
score comes from the memory: answers.jsonl has a row for each question.
Reader: SmolLM2-135M-Instruct. READER, which is downloaded: mamba, bart or t5
(configs/memory/chain.py names them).
Hardware: 2 CPU cores. Not run here.

:tiny asks eight questions of models of bytes that were trained for four steps, on a CPU. Their
answers are not right; it shows that every stage runs. It is ":tiny,READER" for others.
"""

from configs.memory.chain import chain


def get_config(variant=""):
    return chain("replug", "replug", variant)
