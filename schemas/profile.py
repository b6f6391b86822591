"""Profile v1: CKA between the reference and each frozen layer's output on a device's texts; the device's budget."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from schemas.base import Manifest, Many, Record
from schemas.refs import DeviceName, Digest, Dtype, ModelFingerprint, NonNegativeInt, PositiveInt
from schemas.settings import EncodingSettings, NumericsSettings, PromptSettings, SimilaritySettings

LENGTH_STEP = 8
FURTHEST_END = 4096.0  # 1 + 1.96 √n, n = 2^20 texts (`SimilaritySettings.max_examples`), is half of it
IntervalEnd = Annotated[float, Field(ge=-FURTHEST_END, le=FURTHEST_END)]
MOST_TOKENS = 1_048_576
Length = Annotated[int, Field(ge=1, le=MOST_TOKENS)]


class LayerSimilarity(Record):
    """CKA between the reference and the output of one layer, with a 95 % interval.

    The unbiased estimator can be negative, and the interval can reach outside [-1, 1]: its half is 1.96 √n at most.
    """

    cka: Annotated[float, Field(ge=-1, le=1)]  # Cauchy-Schwarz
    low: IntervalEnd
    high: IntervalEnd

    @model_validator(mode="after")
    def _interval_holds_the_value(self) -> "LayerSimilarity":
        if not self.low <= self.cka <= self.high:
            raise ValueError("the interval does not hold the value")
        return self


class TextLengths(Record):
    """Percentiles of the lengths of texts in tokens, for `max_length = "auto"`.

    Four numbers leave a device.  Longer texts count as `read` tokens, and lengths are rounded up to a multiple of
    `LENGTH_STEP`, so that they tell little of a single text, the longest included.
    """

    read: Annotated[int, Field(ge=2, le=MOST_TOKENS)]  # tokens of a text that were read at most
    median: Length  # half of the texts have at most so many tokens
    p90: Length
    p99: Length
    longest: Length

    @model_validator(mode="after")
    def _percentiles_are_in_order(self) -> "TextLengths":
        lengths = [*self.by_percentage().values(), self.read]
        if lengths != sorted(lengths):
            raise ValueError("percentiles are in order, and none is above what was read")
        return self

    def by_percentage(self) -> dict[int, int]:
        """The length that so many percent of the texts do not exceed."""
        return {50: self.median, 90: self.p90, 99: self.p99, 100: self.longest}


class ProfileManifest(Manifest):
    """The result of `chainctl profile` on one device.  With too few texts there is no curve."""

    KIND: ClassVar[str] = "profile"

    kind: Literal["profile"] = "profile"
    version: Literal[1] = 1
    device: DeviceName
    model: ModelFingerprint
    inputs: Digest  # salted digest of texts and settings: recognises equal inputs without revealing them
    example_count: NonNegativeInt  # texts on the device
    profiled_count: NonNegativeInt  # [n] texts used to estimate CKA
    memory_budget_bytes: PositiveInt
    prompt: PromptSettings
    encoding: EncodingSettings
    lengths: TextLengths | None  # of the device's texts; None where it has none
    similarity: SimilaritySettings
    numerics: NumericsSettings
    native_dtypes: Many[Dtype] = ("float32",)  # what the device's processor multiplies in hardware
    layers: Many[LayerSimilarity]

    @model_validator(mode="after")
    def _a_curve_is_whole_or_absent(self) -> "ProfileManifest":
        if self.layers and len(self.layers) != self.model.num_layers:
            raise ValueError("a curve needs one value for each layer")
        return self

    @model_validator(mode="after")
    def _a_curve_is_of_its_texts(self) -> "ProfileManifest":
        if self.profiled_count > self.example_count or (self.layers and not self.profiled_count):
            raise ValueError("a curve is measured on texts of the device")
        return self

    @model_validator(mode="after")
    def _lengths_are_of_its_texts(self) -> "ProfileManifest":
        read = self.lengths.read if self.lengths else None
        if read != (self.encoding.max_length if self.example_count else None):
            raise ValueError("the lengths are those of the texts, read up to max_length")
        return self

    @model_validator(mode="after")
    def _native_dtypes_are_distinct(self) -> "ProfileManifest":
        if "float32" not in self.native_dtypes or len(set(self.native_dtypes)) != len(self.native_dtypes):
            raise ValueError("native dtypes are listed once each, float32 among them")
        return self

    @model_validator(mode="after")
    def _settings_are_decided(self) -> "ProfileManifest":
        used = (self.similarity.scale, self.numerics.micro_batch, self.prompt.template, self.encoding.max_length)
        if "auto" in used:
            raise ValueError("a profile must hold the scale, micro-batch, template and length that were used, not auto")
        if self.numerics.compute != "float32":
            raise ValueError("a profile computes in float32")
        return self
