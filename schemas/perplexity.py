"""Perplexity v1: how well a state predicts the next tokens of texts."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from schemas.base import Manifest
from schemas.evaluation import Estimate
from schemas.refs import Digest


class PerplexityManifest(Manifest):
    """Mean loss of one state over all predicted tokens of one data set, and its exponential."""

    KIND: ClassVar[str] = "perplexity"

    kind: Literal["perplexity"] = "perplexity"
    version: Literal[1] = 1
    plan: Digest
    state: Digest
    round: Annotated[int, Field(ge=0)]
    data: Digest
    example_count: Annotated[int, Field(ge=1)]
    token_count: Annotated[int, Field(ge=1)]  # tokens in the loss
    loss: Estimate  # nats per token; interval over texts (ratio estimator)
    perplexity: Estimate
