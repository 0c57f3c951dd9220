"""Small decoder on the State of the Union speeches up to 1900: a stage of the quickstart.

1.05 M parameters, 2,048 tokens.

python -m lm.train --config=configs/quickstart_pretrain.py --workdir=runs/speeches \
    --config.tokenizer=runs/tokenizer \
    --config.data.files='speeches/17*.txt,speeches/18*.txt,speeches/1900*.txt'
"""

from configs.defaults import defaults, specialise


def get_config(variant=""):
    c = defaults()
    c.steps = 300  # updates
    c.batch_size = 16  # rows per update
    c.length = 128  # tokens per row
    c.model.update(
        d_model=128, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=32, d_ff=384, max_length=512
    )  # a small Llama
    c.optimizer.learning_rate = 6e-3  # high, since the model is small
    c.optimizer.warmup = 20
    c.checkpoint.every = 100
    c.eval.every = 150
    c.eval.max_rows = 128  # per period; the study evaluates all rows afterwards
    c.samples.prompts = ("Fellow-Citizens of the Senate and", "The state of the Union is")
    return specialise(c, variant, tiny={"steps": 10, "checkpoint.every": 10, "optimizer.warmup": 2})
