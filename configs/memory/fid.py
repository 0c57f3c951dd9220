"""Fusion in decoder: passages encoded apart, read together by the decoder (Izacard & Grave 2021).

python -m launch.study --config=configs/memory/fid.py[:trained|:bart]
Asks about cities, countries and elements from a memory of their passages, and audits whether the
score comes from the memory: answers.jsonl has a row for each question. Reader: flan-t5-small,
which is downloaded; it was not trained to read passages apart. Variant bart: bart-base. Variant
trained (trained-tiny): it is first, on other questions (configs/memory/open_book.py).
Hardware: 2 CPU cores, a GPU to train. Not run here.

:tiny asks eight questions of models of bytes that were trained for four steps, on a CPU. Their
answers are not right; it shows that every stage runs.
"""

from configs.memory.chain import chain


def get_config(variant=""):
    return chain("fid", "fid", variant, readers=("t5", "bart"))
