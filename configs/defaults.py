"""All fields of a training config, with their defaults.

A config file starts from defaults(), changes fields, and ends with specialise().
"""

from ml_collections import ConfigDict

from lm import tasks
from lm.adaptation import lora
from lm.distributed import rules, sharding
from lm.evaluation import generation, words
from lm.training import optimizer, settings


def defaults() -> ConfigDict:
    """Locked config with all fields: setting an unknown field raises an error with a suggestion."""
    c = ConfigDict()
    c.seed = 0  # of initial weights, order of the data, dropout
    c.steps = 1000  # updates
    c.batch_size = 32  # rows per update, over all devices
    c.length = 256  # tokens per row
    # Micro-batches per update; the result is the same, also for contrastive (GradCache).
    c.accumulate = 1
    c.tokenizer = ""  # folder, hub id or .gguf file; "bytes" = one token per byte; "" = init_from's
    # Run folder, model folder, hub id or .gguf file to start from; "" = random weights of `model`.
    c.init_from = ""
    # Compilation cache; "" = JAX_COMPILATION_CACHE_DIR or ~/.cache/openbook/compiled.
    c.compilation_cache = ""

    # Fields of lm.ModelConfig. With init_from only dtype, param_dtype, remat, layers and dropout
    # are used.
    c.model = settings.model_section(settings.MODEL)
    # 0 = the tokenizer's size, rounded up to a multiple of 64. The ids of special tokens are always
    # the tokenizer's.
    c.model.vocab_size = 0

    # What is learned: the fields of one task. A config chooses another with
    # c.task = tasks.defaults(NAME); docs/tasks.md lists them.
    c.task = tasks.defaults("next_token")

    # Tasks learned beside it: name -> {"task": ..., "files": ..., "batch_size": rows per update,
    # "coefficient": factor of its loss}; docs/tasks.md.
    c.further_tasks = ConfigDict()

    c.data = ConfigDict()
    # Comma-separated files and globs: text, .jsonl, .json, .parquet, also of gs://;
    # tfds:NAME:SPLIT, hf:NAME:SPLIT.
    c.data.files = ""
    # Instead of files: name -> {"files": ..., "weight": ...} of several sources; docs/data.md.
    c.data.mixture = ConfigDict()
    c.data.temperature = 1.0  # of the mixture: rates are raised to 1 / temperature
    # Share of documents or records held out by a hash of their content, evaluated as "holdout".
    c.data.holdout_share = 0.0
    c.data.max_bad_share = 0.0  # maximum share of unusable records, which are left out
    c.data.cache = ""  # folder for tokenised rows; "" = workdir/cache
    c.data.synthetic_rows = 0  # instead of files: number of rows of random tokens, for benchmarks

    c.optimizer = ConfigDict()
    c.optimizer.name = "adamw"  # adamw, adafactor, lion, muon (matrices in layers; AdamW elsewhere)
    c.optimizer.learning_rate = 1e-3  # peak
    # Decay after warm-up: cosine, linear, wsd (constant, then linear), inverse_sqrt, constant.
    c.optimizer.schedule = "cosine"
    c.optimizer.warmup = 0  # updates of linear warm-up, at most half of steps
    c.optimizer.cooldown = 0  # wsd: updates of decay at the end
    c.optimizer.final = optimizer.FINAL  # final learning rate as a share of the peak
    # AdamW: decay of the first moment. Lion: weight of the momentum in an update.
    c.optimizer.b1 = optimizer.DEFAULTS["b1"]
    # AdamW: decay of the second moment. Lion: decay of the momentum.
    c.optimizer.b2 = optimizer.DEFAULTS["b2"]
    c.optimizer.eps = optimizer.DEFAULTS["eps"]  # AdamW: added to the root of the second moment
    c.optimizer.momentum = optimizer.DEFAULTS["momentum"]  # Muon: decay of the momentum
    c.optimizer.weight_decay = 0.1  # decoupled, multiplied by the learning rate
    # (regex, share of weight_decay); the first match in a parameter's path; norms and biases: 0.
    c.optimizer.decay = rules.DECAY
    # (regex, factor of the learning rate), matched likewise; 0 = frozen, no gradient or moments.
    c.optimizer.rates = rules.RATES
    # With model.param_dtype="bfloat16": master (updates float32 copies) or stochastic (no copies).
    c.optimizer.rounding = "master"
    c.optimizer.clip = 1.0  # maximum global norm of the gradient; 0 = off
    # Skip an update whose gradient norm is above this multiple of the median of the last 128;
    # 0 = never.
    c.optimizer.skip_above = 0.0
    # Skip up to this many consecutive updates with a non-finite loss or gradient, then stop.
    c.optimizer.skip_nonfinite = 0
    # Decay of a moving average of the weights, which is then evaluated, sampled and exported;
    # 0 = none.
    c.optimizer.ema = 0.0

    # Methods that keep a model near that of init_from. For replay, see data.mixture.
    c.adaptation = ConfigDict()
    c.adaptation.lora = ConfigDict()  # train low-rank adapters instead of the kernels
    c.adaptation.lora.rank = 0  # rank of the adapters; 0 = none
    c.adaptation.lora.alpha = 0.0  # adapters are scaled by alpha / rank; 0 = 2 * rank
    c.adaptation.lora.dropout = 0.0  # dropout of the adapters' inputs
    c.adaptation.lora.pattern = lora.PATTERN  # regex: kernels whose path matches have adapters
    c.adaptation.l2_sp = 0.0  # strength / 2 * squared distance from the initial weights
    c.adaptation.ewc = ConfigDict()  # the same, weighted by each weight's Fisher information
    c.adaptation.ewc.strength = 0.0
    c.adaptation.ewc.fisher = ""  # file from python -m lm.fisher
    c.adaptation.kl = ConfigDict()  # divergence of predictions from the base's, at trained tokens
    c.adaptation.kl.strength = 0.0
    c.adaptation.kl.direction = "forward"  # KL(base || model); "reverse": KL(model || base)

    c.mesh = ConfigDict()  # devices per axis; -1 = all remaining devices
    c.mesh.data = -1  # replicas of the model
    c.mesh.fsdp = 1  # parameters, gradients and moments are sharded, and gathered when used
    c.mesh.sequence = 1  # the tokens of a row are split: for long rows (context parallelism)
    c.mesh.tensor = 1  # heads, mlp and vocabulary are sharded within a layer

    c.sharding = ConfigDict()
    # With accumulate > 1 and mesh.fsdp > 1: gradients are reduced once a step, and weights and
    # gradients are whole on each device meanwhile; "micro_batch" keeps them split.
    c.sharding.reduce = "step"
    # logical dimension -> mesh axes
    c.sharding.parameters = ConfigDict(
        {name: tuple(axes) for name, axes in sharding.PARAMETERS.items()}
    )
    c.sharding.activations = ConfigDict(
        {name: tuple(axes) for name, axes in sharding.ACTIVATIONS.items()}
    )

    c.log = ConfigDict()
    c.log.every = 10  # steps between rows of metrics.jsonl
    c.log.tensorboard = True  # also write them to workdir/tensorboard
    c.log.wandb = ""  # project on Weights & Biases (pip install 'openbook[wandb]'); "" = none

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 500  # steps; also saved at the last step and on SIGTERM
    c.checkpoint.keep = 2  # newest checkpoints that are kept

    c.resume = ConfigDict()  # resuming a run
    # Comma-separated fields that may change although later rows then differ, e.g. "length,seed";
    # "data.files" = content of the files.
    c.resume.allow = ""

    c.eval = ConfigDict()
    c.eval.every = 500  # steps; also at the last step; 0 = never
    c.eval.data = ConfigDict({"heldout": ""})  # name -> files, read as data.files are; "" = none
    c.eval.max_rows = 0  # rows per entry; 0 = all
    # Questions that are answered greedily, for scores, the stop rate and samples.md.
    c.eval.generation = ConfigDict()
    # Instruct data, read with task.format and task.template, or "hold_out"; "" = none.
    c.eval.generation.files = ""
    c.eval.generation.max_examples = 64  # evenly spaced over all; 0 = all
    c.eval.generation.max_new_tokens = 64  # tokens per answer
    c.eval.generation.metrics = generation.METRICS  # docs/evaluation.md
    # "unicode" for scripts other than Latin; or a tokenizer's folder, hub id or .gguf file.
    c.eval.generation.rouge_tokenizer = words.ROUGE
    c.eval.generation.beams = 1  # beam search with this many beams; 1 = greedy
    c.eval.generation.length_penalty = 1.0  # of beams: above 0 favours longer answers
    c.eval.generation.every = 0  # steps; also at the last step; 0 = only then

    # Further evaluators: name -> {"type": ..., "every": steps, ...}; docs/write_an_evaluator.md.
    c.evals = ConfigDict()

    c.samples = ConfigDict()
    c.samples.prompts = ()  # texts to continue in samples.md; () = none
    c.samples.every = 0  # steps; also at the last step; 0 = only then
    c.samples.tokens = 48  # new tokens per sample
    c.samples.temperature = 0.8  # sampling temperature
    c.samples.top_p = 0.95  # nucleus sampling
    return c.lock()


def specialise(c: ConfigDict, variant: str, **known: dict) -> ConfigDict:
    """Apply the variant of --config=file.py:variant. Raises ConfigError for an unknown name.

    known: variant -> {"dotted.field": value}.
    """
    return settings.variant(c, variant, **known)
