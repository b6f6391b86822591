"""Settings: what a recipe chooses and a plan fixes.

A section is the same class in `recipe.toml` and in the manifests, so a setting has one name, one default and
one meaning everywhere.  Values called `auto` (or `foat`) are decided by a stage; a manifest always holds the
decision.  Symbols in brackets are from the ChainFed paper.
"""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.base import Many, Record
from schemas.day import Day
from schemas.methods import ChainSettings, ChosenSettings
from schemas.refs import Digest, Dtype, Label, NonNegativeInt, PositiveInt

PositiveFloat = Annotated[float, Field(gt=0)]
Strategy = Literal["weighted-mean", "coordinate-median", "trimmed-mean", "krum", "multi-krum"]
Compute = Literal["auto", "float32", "bfloat16", "float16"]  # auto, or a `Dtype`: one list, so that an error has one
ServerOptimizer = Literal["none", "fedavgm", "fedadam", "fedyogi"]
TaskKind = Literal["text-classification", "causal-lm"]
REDUCTION_FACTORS = (16, 64, 192)  # that `auto` chooses from: widths 36, 9 and 3 for a hidden size of 576
EFFICIENT_TOKENS = 512  # per matrix product; more are not faster on a CPU (docs/performance.md)
READ_TOKENS = 512  # of a text that `max_length = "auto"` reads at most where the model has no limit of its own


class TaskSettings(Record):
    """What the model learns, and from which columns.

    `text-classification`: the plan fixes the label set, in this order.  `causal-lm`: next tokens, with the model's own
    language head; there are no labels.
    """

    kind: TaskKind = "text-classification"
    text_column: str = "text"
    label_column: str = "label"
    labels: Many[Label] = ()

    @model_validator(mode="after")
    def _labels_are_distinct(self) -> "TaskSettings":
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("a label is listed twice")
        if self.labels and self.kind == "causal-lm":
            raise ValueError("a causal-lm task has no labels")
        return self


# What turns the last hidden states into logits: the first two classify, the third is for `causal-lm`.
HeadForm = Literal["transformers", "mean", "language-model"]


class PromptSettings(Record):
    """How a record becomes text for a language model, and which of its tokens are in the loss (`causal-lm` only).

    `plain`: the text column, all tokens in the loss.  `alpaca`: columns `instruction`, `input` (may be empty or
    missing) and `output`.  `chat`: a column `messages` with `role` and `content`, or ShareGPT's `conversations`.  The
    template is the model's own chat template, fixed in a plan by its SHA-256, or Alpaca's.  `date` is what the clock of
    a chat template shows (`strftime_now`): a day that is the same on every device and in every round, by default the
    one that Llama 3's template falls back to.
    """

    format: Literal["plain", "alpaca", "chat"] = "plain"
    template: Literal["auto", "none", "alpaca"] | Digest = "auto"  # auto: the model's; Alpaca's if it has none
    learn: Literal["response", "all"] = "response"  # the tokens in the loss
    date: Day = "2024-07-26"


class EncodingSettings(Record):
    """How texts become tokens.  Longer texts are truncated to `max_length` tokens.

    `auto` reads as many as the model has positions for, 512 where it has no limit; the plan then fixes what 99 % of all
    devices' texts need.  `packing` puts several texts in a row of `max_length` tokens, separated by positions and mask
    (`causal-lm` only); `auto` is then what was read.
    """

    max_length: Literal["auto"] | Annotated[int, Field(ge=2, le=1_048_576)] = "auto"
    padding_side: Literal["right", "left"] = "right"
    packing: bool = False

    @model_validator(mode="after")
    def _packed_rows_are_padded_on_the_right(self) -> "EncodingSettings":
        if self.packing and self.padding_side == "left":
            raise ValueError('packing needs padding_side = "right"')
        return self

    @property
    def most_tokens(self) -> int:
        """Tokens of a text at most.  Only if `max_length` is decided."""
        assert self.max_length != "auto", "max_length is decided by `profile` and `plan`"
        return self.max_length

    def reading(self, limit: int | None) -> "EncodingSettings":
        """The same settings with `auto` replaced by as many tokens as are read of a text before a plan.

        `limit`: how many the model has positions for, None for any number.
        """
        if self.max_length != "auto":
            return self
        return self.model_copy(update={"max_length": READ_TOKENS if limit is None else limit})


class HeadSettings(Record):
    """`transformers`: the model's own …ForSequenceClassification head.  `mean`: mean over real tokens, linear."""

    form: Literal["transformers", "mean"] = "transformers"


class SimilaritySettings(Record):
    """How CKA (Eq. 3 and 4) is estimated.  Profiles with different settings are never averaged."""

    estimator: Literal["unbiased", "biased"] = "unbiased"
    kernel: Literal["linear", "rbf"] = "linear"
    pooling: Literal["mean", "first", "last", "tokens"] = "mean"
    tokens: Literal["all", "skip-first"] = "all"
    scale: Literal["auto", "none", "unit"] = "auto"  # auto: unit for decoders (attention sinks), none for encoders
    reference: Literal["embeddings", "first-layer"] = "embeddings"
    # At least 5: HSIC₁ divides by n (n-3), and the jackknife leaves one text out.
    max_examples: Annotated[int, Field(ge=5, le=2**20)] = 256
    min_examples: Annotated[int, Field(ge=5, le=2**20)] = 32

    @model_validator(mode="after")
    def _floor_is_below_ceiling(self) -> "SimilaritySettings":
        if self.min_examples > self.max_examples:
            raise ValueError("min_examples is above max_examples")
        return self


class AdapterSettings(Record):
    """Eq. 1: A(h) = h + W_up σ(W_down h).  Bottleneck width r = hidden_size // reduction_factor."""

    # auto: 16, for causal-lm 64 (what measured best); 64 or 192 where federation.round_bytes asks for narrower ones.
    reduction_factor: Literal["auto"] | PositiveInt = "auto"
    activation: Literal["auto", "relu", "silu", "gelu"] = "auto"  # auto: silu for decoders, relu for encoders

    def bottleneck(self, hidden_size: int) -> int:
        """r of Eq. 1.  Only if the factor is decided."""
        assert self.reduction_factor != "auto", "the factor is decided by `plan`"
        return max(1, hidden_size // self.reduction_factor)

    def choices(self, task: TaskKind) -> "tuple[AdapterSettings, ...]":
        """The same settings with each factor that `auto` may choose for a task, widest adapters first."""
        if self.reduction_factor != "auto":
            return (self,)
        factors = REDUCTION_FACTORS[1:] if task == "causal-lm" else REDUCTION_FACTORS
        return tuple(self.model_copy(update={"reduction_factor": factor}) for factor in factors)

    def decided(self, *, decoder: bool) -> "AdapterSettings":
        """The same settings with `auto` replaced by the family's activation."""
        if self.activation != "auto":
            return self
        return self.model_copy(update={"activation": "silu" if decoder else "relu"})


class OptimizerSettings(Record):
    """How a device trains in one `train-window`.  Optimiser state starts at zero every time.

    `steps`: so many steps per round, however many texts the device has, or `epochs` passes over its texts.
    `schedule`: the learning rate of round t is constant (times `round_decay`^t), or falls along a half cosine
    (Loshchilov & Hutter 2017, eq. 5) from `learning_rate` to `final_learning_rate` in `schedule_rounds` rounds.
    `max_gradient_norm`: a gradient whose norm, over everything that trains, is larger is scaled down to it (Pascanu et
    al. 2013, algorithm 1).
    """

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 4e-3
    round_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # the learning rate of round t is learning_rate · decay^t
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0  # sgd only
    schedule: Literal["constant", "cosine"] = "constant"
    schedule_rounds: PositiveInt = 100
    final_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    steps: Literal["epochs"] | PositiveInt = "epochs"
    epochs: PositiveInt = 1
    batch_size: PositiveInt = 8  # texts per step; gradients accumulate over its micro-batches
    max_gradient_norm: Literal["none"] | Annotated[float, Field(gt=0)] = "none"

    @model_validator(mode="after")
    def _one_schedule(self) -> "OptimizerSettings":
        if self.schedule == "cosine" and self.round_decay != 1.0:
            raise ValueError("the cosine schedule cannot be combined with round_decay")
        if self.schedule == "cosine" and self.final_learning_rate > self.learning_rate:
            raise ValueError("final_learning_rate is above learning_rate")
        return self

    @property
    def clips(self) -> bool:
        """Whether a gradient waits for the norm of all before its step."""
        return self.max_gradient_norm != "none"

    @property
    def moments(self) -> int:
        """How many values of optimizer state a parameter has."""
        return {"adamw": 2, "sgd": 1 if self.momentum else 0}[self.name]

    def rate(self, round_number: int) -> float:
        """The learning rate of a round."""
        if self.schedule == "constant":
            return self.learning_rate * self.round_decay**round_number
        share = min(round_number / self.schedule_rounds, 1.0)
        fall = (self.learning_rate - self.final_learning_rate) / 2
        return self.final_learning_rate + fall * (1.0 + math.cos(math.pi * share))

    def step_count(self, example_count: int) -> int:
        """The number of steps per round of a device with that many texts."""
        return self.epochs * -(-example_count // self.batch_size) if self.steps == "epochs" else self.steps


class NumericsSettings(Record):
    """Settings that change results in the last bit.  Fixed by the plan, so that equal work has an equal digest."""

    # dtype that flows through the frozen layers, whose weights stay as stored; adapters, head and losses: float32.
    # auto: bfloat16 where the model is stored in it and all devices multiply it in hardware, else float32.
    compute: Compute = "auto"
    micro_batch: Literal["auto"] | PositiveInt = "auto"  # in texts; auto: 512 tokens, or fewer to fit a budget
    threads: PositiveInt = 2

    @property
    def rows(self) -> int:
        """Texts per micro-batch.  Only if `micro_batch` is decided."""
        assert self.micro_batch != "auto", "micro_batch is decided by `profile` and `plan`"
        return self.micro_batch

    @property
    def computes_in(self) -> Dtype:
        """The dtype that computes: float32 as long as `compute` is not decided."""
        return "float32" if self.compute == "auto" else self.compute

    def computing_in(self, dtype: Dtype) -> "NumericsSettings":
        """The same settings with that dtype."""
        return self.model_copy(update={"compute": dtype})

    def decided(self, max_length: int) -> "NumericsSettings":
        """The same settings with `auto` replaced by as many texts as fill the CPU (512 tokens), at least one."""
        if self.micro_batch != "auto":
            return self
        return self.model_copy(update={"micro_batch": max(1, EFFICIENT_TOKENS // max_length)})


class FederationSettings(Record):
    """Which devices take part, and how their updates become the next state.

    `devices_per_round`: all, or that many, drawn for each round from the seed.  All strategies work on the difference
    between an update and the state that it was trained from.
    """

    devices_per_round: Literal["all"] | PositiveInt = "all"
    # What a round may cost a device; the plan chooses layers, width and window by it.
    round_passes: Literal["none"] | PositiveInt = "none"  # of each text in a step through layers, forward and backward
    round_bytes: Literal["none"] | PositiveInt = "none"  # of the tensors that it sends
    quorum: Literal["all"] | PositiveInt = 1  # accepted updates needed to close a round
    strategy: Strategy = "weighted-mean"
    # [β] trimmed-mean: share of the round's updates trimmed at each end of every tensor; at least one unless 0
    trim_fraction: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    # [f] of a round: krum and multi-krum need 2 f + 3 holders of a tensor, coordinate-median and trimmed-mean 2 f + 1
    assumed_malicious: NonNegativeInt = 0
    # Differences with a larger norm are scaled down to it.  median: the median norm of the round, also over those
    # tensors alone that the same updates hold.
    clip_norm: Literal["none", "median"] | PositiveFloat = "none"
    # Updates with a larger difference are refused.  auto: AdamW's bound for the device's steps; none for sgd.
    max_update_norm: Literal["auto", "none"] | PositiveFloat = "auto"
    server_optimizer: ServerOptimizer = "none"
    server_learning_rate: PositiveFloat = 0.1  # [η]
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # [β₁]
    server_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99  # [β₂] fedadam and fedyogi
    server_tau: PositiveFloat = 1e-3  # [τ] fedadam and fedyogi: how adaptive


class Settings(Record):
    """All sections: a recipe before it is planned, a plan's settings after."""

    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0
    task: TaskSettings = TaskSettings()
    prompt: PromptSettings = PromptSettings()
    encoding: EncodingSettings = EncodingSettings()
    head: HeadSettings = HeadSettings()
    similarity: SimilaritySettings = SimilaritySettings()
    chain: ChosenSettings = ChainSettings()
    adapter: AdapterSettings = AdapterSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    numerics: NumericsSettings = NumericsSettings()
    federation: FederationSettings = FederationSettings()

    @model_validator(mode="after")
    def _prompts_are_for_language_models(self) -> "Settings":
        if self.task.kind != "causal-lm" and (self.prompt.format != "plain" or self.encoding.packing):
            raise ValueError('prompt.format and encoding.packing are for task.kind = "causal-lm"')
        return self

    @property
    def head_form(self) -> HeadForm:
        """The head that the task uses."""
        return "language-model" if self.task.kind == "causal-lm" else self.head.form
