"""English to German with the Transformer of Vaswani et al. 2017, base model.

tfds build wmt14_translate/de-en --file_format=array_record
python -m lm.train_tokenizer --model=unigram --vocab_size=37000 --field=en,de \
    --input=tfds:wmt14_translate/de-en:train --output=runs/en-de-tokenizer
python -m lm.train --config=configs/translate_transformer.py --workdir=runs/en-de
python -m lm.evaluate --model=runs/en-de --examples=tfds:wmt14_translate/de-en:test \
    --metrics=bleu,chrf --beams=4 --length-penalty=0.6
Other pairs: --config.data.files=pairs.jsonl --config.task.prompt_field=source and
--config.task.completion_field=target name the files and the fields of the two languages.

Hardware: 8 GPUs (the paper: 12 hours on 8 P100). Expected: BLEU 27.3 on newstest2014 (their table
2). That figure is of tokenised text with split compounds and the mean of the last five checkpoints,
none of which is done here; sacreBLEU's is lower. Pieces are of a unigram model instead of BPE. Not
run here.

:tiny trains 0.2 M parameters on bytes of configs/examples/translation.jsonl in under a minute on a
CPU: loss from 5.7 to about 1.7; BLEU is then 2 on the same pairs.
"""

from configs.defaults import defaults, specialise
from lm import tasks
from lm.families import preset
from lm.training.settings import model_section

WMT = "tfds:wmt14_translate/de-en"


def get_config(variant=""):
    c = defaults()
    c.tokenizer = "runs/en-de-tokenizer"  # one vocabulary for both languages
    c.data.files = f"{WMT}:train"
    c.data.max_bad_share = 0.01  # pairs with an empty side
    c.task = tasks.defaults("instruct")
    c.task.format = "completion"
    c.task.prompt_field, c.task.completion_field = "en", "de"  # source and target
    c.task.template = "plain"  # nothing beside the two sentences
    c.task.label_smoothing = 0.1
    c.task.max_long = 0.05  # share of pairs with a sentence longer than a row, which are left out
    c.length = 128  # tokens per row of packed sources
    c.task.target_length = 128  # tokens per row of packed targets
    c.batch_size = 200  # rows per update, about 25,000 tokens of each language (section 5.1)
    c.steps = 100_000  # updates
    c.model.update(model_section(preset("marian", "transformer_base")).to_dict())
    c.model.vocab_size = 0  # the tokenizer's 37,000, rounded up
    c.model.dropout = 0.1
    c.model.dtype = "bfloat16"  # of activations; parameters and moments are float32
    # Section 5.3: d_model^-0.5 * min(step^-0.5, step * warmup^-1.5), whose peak is this.
    c.optimizer.warmup = 4000
    c.optimizer.learning_rate = (512 * 4000) ** -0.5
    c.optimizer.schedule = "inverse_sqrt"
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.98
    c.optimizer.eps = 1e-9
    c.optimizer.weight_decay = 0.0
    c.optimizer.clip = 0.0
    c.eval.data.heldout = f"{WMT}:validation"
    c.eval.every = 5000
    c.eval.generation.files = f"{WMT}:validation"
    c.eval.generation.every = 20_000
    c.eval.generation.max_examples = 500
    c.eval.generation.max_new_tokens = 128
    c.eval.generation.metrics = "bleu,chrf"
    # Section 6.1. Scores are divided by length ** 0.6; the paper divides by ((5 + length) / 6) **
    # 0.6 (Wu et al. 2016).
    c.eval.generation.beams = 4
    c.eval.generation.length_penalty = 0.6
    c.checkpoint.every = 5000
    tiny = model_section(preset("marian", "tiny")).to_dict()
    return specialise(
        c,
        variant,
        tiny={f"model.{name}": value for name, value in tiny.items() if value is not None}
        | {  # the same run, small enough for a CPU
            "tokenizer": "bytes",
            "data.files": "configs/examples/translation.jsonl",
            "eval.data.heldout": "",
            "eval.generation.files": "configs/examples/translation.jsonl",
            "eval.generation.every": 0,
            "eval.generation.max_new_tokens": 32,
            "steps": 100,
            "batch_size": 8,
            "length": 64,
            "task.target_length": 64,
            "optimizer.learning_rate": 5e-3,
            "optimizer.warmup": 20,
            "checkpoint.every": 100,
            "model.vocab_size": 0,
            "model.dropout": 0.0,
            "model.dtype": "float32",
        },
    )
