"""Every field of a training config, with its default.

A config file starts from defaults(), changes what it needs, and ends in specialise().
"""

from ml_collections import ConfigDict

from lm.adaptation import lora
from lm.distributed import rules, sharding
from lm.evaluation import generation, words
from lm.training import optimizer, settings


def defaults() -> ConfigDict:
    """A locked config: setting a field that does not exist is an error that suggests the nearest name."""
    c = ConfigDict()
    c.seed = 0  # of the first weights, the order of the data, dropout
    c.steps = 1000  # updates
    c.batch_size = 32  # rows an update, over all devices
    c.length = 256  # tokens a row
    c.accumulate = 1  # micro-batches an update is computed in; the result is the same, of contrastive too (GradCache)
    c.tokenizer = (
        ""  # folder, hub id or .gguf file; "bytes" = one token a byte; "" = that of init_from
    )
    c.init_from = ""  # run folder, model folder, hub id or .gguf file to start from; "" = random weights of `model`
    c.compilation_cache = ""  # folder that keeps compiled code; "" = JAX_COMPILATION_CACHE_DIR, or ~/.cache/openbook/compiled

    c.model = settings.model_section(
        settings.MODEL
    )  # fields of lm.ModelConfig; with init_from dtype, param_dtype, remat, layers, dropout alone

    c.model.vocab_size = 0  # 0 = the tokenizer's, rounded up to a multiple of 64; the ids of special tokens are always the tokenizer's

    c.objective = ConfigDict()
    c.objective.name = "next_token"  # lm/objectives
    c.objective.chunk = 0  # positions whose logits exist at one time; 0 = as many as 256 MB hold
    c.objective.label_smoothing = (
        0.0  # share of every target that is spread evenly over the vocabulary; in training alone
    )
    c.objective.z_loss = 0.0  # times log(Z)^2 of every prediction, Z the sum of exp(logits): keeps it near 1; in training alone

    c.objective.masked = ConfigDict()  # read when name is "masked"; so for the others
    c.objective.masked.rate = 0.15  # share of the tokens to predict
    c.objective.masked.mask = 0.8  # of these, the share that is read as the mask token
    c.objective.masked.random = (
        0.1  # and the share that is read as some other token; the rest as themselves
    )
    c.objective.masked.whole_words = False  # choose words instead of tokens

    c.objective.span_corruption = ConfigDict()
    c.objective.span_corruption.rate = 0.15  # share of the tokens to write
    c.objective.span_corruption.mean_span = 3.0  # tokens a span

    c.objective.instruct = ConfigDict()
    c.objective.instruct.prompt_loss_weight = (
        0.0  # weight in training of a decoder's tokens that are not of an answer, whose weight is 1
    )

    c.objective.ul2 = ConfigDict()
    c.objective.ul2.r = 2.0  # how often few and short spans are missing, as a ratio to the next two; these have every denoiser as likely
    c.objective.ul2.s = 1.0  # how often the end of the text is
    c.objective.ul2.x = 4.0  # how often long spans are, or half of the text
    c.objective.ul2.modes = False  # begin what is read with [NLU], [S2S] or [NLG], which says the kind; the tokenizer must have them

    c.objective.denoising = (
        ConfigDict()
    )  # what is on is done in this order: permute_sentences, token_mask, delete, rate, rotate
    c.objective.denoising.rate = (
        0.3  # share of the tokens under masks that each stand for a span; 0 = no such masks
    )
    c.objective.denoising.mean_span = 3.0  # mean of the Poisson distribution of tokens under a mask
    c.objective.denoising.permute_sentences = False  # read the sentences in random order
    c.objective.denoising.token_mask = 0.0  # share of the tokens read as a mask each
    c.objective.denoising.delete = 0.0  # share of the tokens left out without a sign
    c.objective.denoising.rotate = (
        0.0  # share of the texts that are read from a random token on, their beginning last
    )

    c.objective.classification = ConfigDict()
    c.objective.classification.labels = ()  # names, in the order of their numbers; () = init_from's, or all of data.files, sorted
    c.objective.classification.regression = (
        False  # the label is a number, learned by its squared error
    )

    c.objective.token_classification = ConfigDict()
    c.objective.token_classification.labels = ()  # the same, of words

    c.objective.contrastive = ConfigDict()
    c.objective.contrastive.temperature = 0.05  # that the cosine of two texts is divided by
    c.objective.contrastive.negatives = (
        0  # texts of data.negatives_field that are read, of each record; a row has 2 and these
    )
    c.objective.contrastive.symmetric = (
        False  # also find the text, given its positive; the mean of the two
    )
    c.objective.contrastive.pooling = ""  # mean, first, last; "" = init_from's, or the mean of an encoder and the last of a decoder

    c.data = ConfigDict()
    c.data.files = ""  # comma-separated files and globs: text, .jsonl, .json, .parquet, also of gs://; tfds:NAME:SPLIT, hf:NAME:SPLIT
    c.data.mixture = (
        ConfigDict()
    )  # instead of files: name -> {"files": ..., "weight": ...} of several sources; docs/data.md
    c.data.temperature = 1.0  # of the mixture: its rates to the power of 1 / temperature
    c.data.field = "text"  # field of a JSONL record that holds the text
    c.data.label_field = ""  # of the label: "" = "label", or "tags" of token_classification, whose data.field holds a list of words
    c.data.pair_field = ""  # of classification: the second text of a pair; "" = there is one text. Of contrastive: the positive; "" = itself
    c.data.negatives_field = ""  # of contrastive: what is no positive, a text or a list of texts
    c.data.separator = ""  # what divides a text file into documents; "" = a file is one document
    c.data.format = "text"  # of instruct: auto (by the first record), alpaca, self_instruct, superni, completion, messages, sharegpt, preference
    c.data.template = ""  # of instruct: a name in lm/data/templates; "" = that of init_from's run
    c.data.turns = "all"  # of a conversation, the assistant's turns that are trained: all, last
    c.data.shots = 0  # solved examples of the task before each prompt, the record's own or drawn from its task; tk_instruct has its own
    c.data.cap = 0  # records of a task, drawn from the seed; 0 = all
    c.data.hold_out = ""  # tasks kept out of training: names or globs, or a share such as "0.1"; eval.data.NAME = "hold_out" reads them
    c.data.holdout_share = 0.0  # share of the documents or records kept out of training, by their content, and evaluated as "holdout"
    c.data.max_bad_share = 0.0  # share of records that may be left out because they cannot be used
    c.data.too_long = (
        "drop"  # an example longer than a row: drop, truncate_prompt (its beginning), raise
    )
    c.data.max_long = 0.01  # share of examples that may be
    c.data.target_length = 0  # tokens a row of an encoder-decoder's answers, where length is that of its prompts; 0 = length
    c.data.tk_instruct = ConfigDict()  # read when template is "tk_instruct"
    c.data.tk_instruct.definition = True  # the task's definition
    c.data.tk_instruct.positive = 2  # examples
    c.data.tk_instruct.negative = 0  # examples of what is wrong
    c.data.tk_instruct.explanations = False  # of the examples
    c.data.tk_instruct.mixed = (
        False  # instead of these: one of five encodings, drawn for each record
    )
    c.data.tk_instruct.max_prompt = (
        1024  # tokens that examples are added up to, and the prompt is cut at
    )
    c.data.stride = 0  # tokens between the windows of a document longer than a row, which overlap if it is less than length; 0 = length
    c.data.cache = ""  # folder for tokenised rows; "" = workdir/cache
    c.data.synthetic_rows = 0  # instead of files: this many rows of random tokens, for benchmarks

    c.optimizer = ConfigDict()
    c.optimizer.name = (
        "adamw"  # adamw, adafactor, lion, or muon (AdamW for all but the matrices within layers)
    )
    c.optimizer.learning_rate = 1e-3  # peak
    c.optimizer.schedule = "cosine"  # way down from the peak: cosine, linear, wsd (stay, then a line), inverse_sqrt, constant
    c.optimizer.warmup = 0  # updates of linear rise to the peak; at most half of steps count
    c.optimizer.cooldown = 0  # wsd: updates of the way down, at the end
    c.optimizer.final = optimizer.FINAL  # last learning rate as a share of the peak
    c.optimizer.b1 = optimizer.DEFAULTS[
        "b1"
    ]  # decay of AdamW's first moment; Lion: weight of the momentum in a step
    c.optimizer.b2 = optimizer.DEFAULTS[
        "b2"
    ]  # decay of AdamW's second moment; Lion: of the momentum
    c.optimizer.eps = optimizer.DEFAULTS[
        "eps"
    ]  # AdamW: added to the square root of the second moment
    c.optimizer.momentum = optimizer.DEFAULTS["momentum"]  # Muon: decay of the momentum
    c.optimizer.weight_decay = 0.1  # decoupled, times the learning rate
    c.optimizer.decay = rules.DECAY  # (regex, share of weight_decay): the first that a parameter's path contains; norms and biases 0
    c.optimizer.rates = rules.RATES  # (regex, multiple of the learning rate), read like decay; 0 = frozen: no gradient, no moments
    c.optimizer.rounding = "master"  # with model.param_dtype="bfloat16": master (float32 copies take the updates), stochastic (no copies)
    c.optimizer.clip = 1.0  # largest global norm of the gradient; 0 = any
    c.optimizer.skip_above = 0.0  # skip an update whose gradient norm is this multiple of the median of the last 128; 0 = never
    c.optimizer.skip_nonfinite = (
        0  # skip up to so many updates in a row whose loss or gradient is not finite, then stop
    )
    c.optimizer.ema = 0.0  # decay of a moving average of the weights, which then is what is evaluated, sampled and exported; 0 = none

    c.adaptation = (
        ConfigDict()
    )  # what keeps a model near the one of init_from; replay is a matter of data
    c.adaptation.lora = ConfigDict()  # train low-rank additions to kernels instead of the kernels
    c.adaptation.lora.rank = 0  # of the additions; 0 = none
    c.adaptation.lora.alpha = 0.0  # the additions count alpha / rank times; 0 = 2 * rank
    c.adaptation.lora.dropout = (
        0.0  # share of a kernel's inputs that its addition does not see, anew for each micro-batch
    )
    c.adaptation.lora.pattern = lora.PATTERN  # regex: kernels whose path contains it
    c.adaptation.l2_sp = 0.0  # strength / 2 * squared distance of the weights from where they began
    c.adaptation.ewc = ConfigDict()  # the same, each weight's distance times its Fisher information
    c.adaptation.ewc.strength = 0.0
    c.adaptation.ewc.fisher = ""  # file that python -m lm.fisher wrote
    c.adaptation.kl = (
        ConfigDict()
    )  # divergence of the predictions from those of the base, where tokens are trained
    c.adaptation.kl.strength = 0.0
    c.adaptation.kl.direction = "forward"  # KL(base || model); "reverse": KL(model || base)

    c.mesh = ConfigDict()  # devices along each axis; -1 = all that are left
    c.mesh.data = -1  # whole copies of the model
    c.mesh.fsdp = 1  # parameters, gradients and moments sharded, gathered when used
    c.mesh.tensor = 1  # heads, mlp and vocabulary sharded within a layer

    c.sharding = ConfigDict()  # logical dimension -> mesh axes
    c.sharding.parameters = ConfigDict(
        {name: tuple(axes) for name, axes in sharding.PARAMETERS.items()}
    )  # of weights at rest
    c.sharding.activations = ConfigDict(
        {name: tuple(axes) for name, axes in sharding.ACTIVATIONS.items()}
    )  # of what is computed

    c.log = ConfigDict()
    c.log.every = 10  # steps between rows of metrics.jsonl
    c.log.tensorboard = True  # write the same to workdir/tensorboard
    c.log.wandb = (
        ""  # and to this project on Weights & Biases (pip install 'openbook[wandb]'); "" = none
    )

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 500  # steps; the last step and a SIGTERM save too
    c.checkpoint.keep = 2  # the newest ones

    c.resume = ConfigDict()  # a run that is started again
    c.resume.allow = ""  # comma-separated fields that may differ although other rows follow, e.g. "length,seed"; "data.files" = contents

    c.eval = ConfigDict()
    c.eval.every = 500  # steps; the last step evaluates too; 0 = never
    c.eval.data = ConfigDict({"heldout": ""})  # name -> files, read as data.files are; "" = none
    c.eval.max_rows = 0  # rows of each to read; 0 = all
    c.eval.generation = (
        ConfigDict()
    )  # questions to answer greedily: scores, stop rate, and answers in samples.md
    c.eval.generation.files = (
        ""  # instruct data, read as data.format and data.template say, or "hold_out"; "" = none
    )
    c.eval.generation.max_examples = 64  # of them, spread over all; 0 = all
    c.eval.generation.max_new_tokens = 64  # tokens an answer
    c.eval.generation.metrics = generation.METRICS  # of them: docs/evaluation.md
    c.eval.generation.rouge_tokenizer = (
        words.ROUGE
    )  # "unicode" for other scripts than Latin; or a tokenizer's folder, hub id, .gguf
    c.eval.generation.every = 0  # steps; the last step answers too; 0 = only then

    c.samples = ConfigDict()
    c.samples.prompts = ()  # texts to continue for samples.md; () = none
    c.samples.every = 0  # steps; the last step samples too; 0 = only then
    c.samples.tokens = 48  # new tokens a sample
    c.samples.temperature = 0.8  # of the sampling
    c.samples.top_p = 0.95  # share of the probability to sample from
    return c.lock()


def specialise(c: ConfigDict, variant: str, **known: dict) -> ConfigDict:
    """The config as --config=file.py:variant asks; `known`: variant -> {"dotted.field": value}. Raises ConfigError for another name."""
    return settings.variant(c, variant, **known)
