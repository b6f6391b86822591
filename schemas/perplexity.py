"""Perplexity v1: how well a state predicts the next tokens of texts."""

from typing import ClassVar, Literal

from schemas.base import Manifest
from schemas.evaluation import Estimate
from schemas.refs import Digest, NonNegativeInt, PositiveInt


class PerplexityManifest(Manifest):
    """Mean loss of one state over all predicted tokens of one data set, and its exponential."""

    KIND: ClassVar[str] = "perplexity"

    kind: Literal["perplexity"] = "perplexity"
    version: Literal[1] = 1
    plan: Digest
    state: Digest
    round: NonNegativeInt
    data: Digest
    example_count: PositiveInt
    token_count: PositiveInt  # tokens in the loss
    loss: Estimate  # nats per token; interval over texts (ratio estimator)
    perplexity: Estimate
