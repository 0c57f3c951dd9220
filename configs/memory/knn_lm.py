"""kNN-LM (Khandelwal et al. 2020): text of later years in a datastore instead of in the weights.

python -m lm.train --config=configs/memory/knn_lm.py --workdir=runs/knn_lm \
    --config.tokenizer=runs/tokenizer
A small Llama of 1.05 M parameters is trained on the speeches up to 1900 (docs/quickstart.md makes
them and the tokenizer). Its perplexity on later speeches is measured without and with a datastore
of other later speeches, which costs no training. :tiny trains on the licence, in bytes, and keeps
pages of the documentation in the datastore: a minute on a CPU, perplexity from about 33 to about 30
on another page.

:TASK,FAMILY is the run of configs/smoke.py with a datastore, for another architecture:
masked,bert; next_token,mamba; instruct,bart; instruct,t5. The models are small and of bytes; it
shows that every part runs.
"""

from configs import smoke
from configs.defaults import defaults, specialise

TINY = {
    "steps": 60,
    "batch_size": 16,
    "length": 64,
    "tokenizer": "bytes",
    "data.files": "LICENSE",
    "model.d_model": 64,
    "model.n_layers": 2,
    "model.n_heads": 8,
    "model.n_kv_heads": 8,
    "model.head_dim": 8,
    "model.d_ff": 192,
    "model.max_length": 128,
    "optimizer.learning_rate": 1e-2,
    "optimizer.warmup": 5,
    "checkpoint.every": 60,
    "evals.knn.store": "docs/generation.md,docs/write_a_task.md,docs/write_a_backend.md",
    "evals.knn.dev": "docs/write_a_source.md",
    "evals.knn.files": "docs/write_a_hook.md",
    "evals.knn.k": 32,
    "evals.knn.pca": 32,
    "evals.knn.max_rows": 32,
}


def get_config(variant=""):
    if "," in variant:
        return _small(variant)
    c = defaults()
    c.steps = 300  # updates
    c.batch_size = 16  # rows per update
    c.length = 128  # tokens per row
    c.data.files = "speeches/17*.txt,speeches/18*.txt,speeches/1900*.txt"
    c.model.update(
        d_model=128, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=32, d_ff=384, max_length=512
    )  # a small Llama
    c.optimizer.learning_rate = 6e-3  # high, since the model is small
    c.optimizer.warmup = 20
    c.checkpoint.every = 100
    c.evals = {
        "knn": {
            "type": "retrieval.doors.knn_evaluator:KnnPerplexity",
            "every": 0,  # after the last step
            "store": "speeches/19[0-7]*.txt",  # what the datastore holds
            "dev": "speeches/198*.txt",  # what share and temperature are tuned on
            "files": "speeches/199*.txt,speeches/20*.txt",  # what is measured
            "adaptive": False,  # True: the share of each token is predicted by a small network
            "k": 64,  # neighbours
            "pca": 64,  # numbers of a key
            "max_rows": 256,  # of dev and of files; 0 = all
        }
    }
    return specialise(c, variant, tiny=TINY)


def _small(variant):
    """A run of configs/smoke.py whose perplexity is also measured with a datastore."""
    c = smoke.get_config(variant)
    store, dev, files = "docs/generation.md", "docs/write_a_source.md", "docs/write_a_hook.md"
    if variant.startswith("instruct"):
        folder = "configs/examples"
        store, dev, files = f"{folder}/sorting.jsonl", "", f"{folder}/sorting_heldout.jsonl"
        c.task.format, c.task.completion_field, c.data.files = "completion", "answer", store
    c.evals = {
        "knn": {
            "type": "retrieval.doors.knn_evaluator:KnnPerplexity",
            "store": store,
            "dev": dev,
            "files": files,
            "k": 32,
            "max_rows": 32,
        }
    }
    return c
