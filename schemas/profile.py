"""Profile v1: CKA between the reference and each frozen layer's output on a device's texts; the device's budget."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from schemas.base import Manifest, Many, Record
from schemas.refs import DeviceName, Digest, Dtype, ModelFingerprint
from schemas.settings import EncodingSettings, NumericsSettings, PromptSettings, SimilaritySettings


class LayerSimilarity(Record):
    """CKA between the reference and the output of one layer, with a 95 % interval.

    The unbiased estimator can be slightly outside [0, 1]; values are not clipped.
    """

    cka: float
    low: float
    high: float

    @model_validator(mode="after")
    def _interval_holds_the_value(self) -> "LayerSimilarity":
        if not self.low <= self.cka <= self.high:
            raise ValueError("the interval does not hold the value")
        return self


class ProfileManifest(Manifest):
    """The result of `chainctl profile` on one device.  With too few texts there is no curve."""

    KIND: ClassVar[str] = "profile"

    kind: Literal["profile"] = "profile"
    version: Literal[1] = 1
    device: DeviceName
    model: ModelFingerprint
    inputs: Digest  # salted digest of texts and settings: recognises equal inputs without revealing them
    example_count: Annotated[int, Field(ge=0)]  # texts on the device
    profiled_count: Annotated[int, Field(ge=0)]  # [n] texts used to estimate CKA
    memory_budget_bytes: Annotated[int, Field(ge=1)]
    prompt: PromptSettings
    encoding: EncodingSettings
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
    def _native_dtypes_are_distinct(self) -> "ProfileManifest":
        if "float32" not in self.native_dtypes or len(set(self.native_dtypes)) != len(self.native_dtypes):
            raise ValueError("native dtypes are listed once each, float32 among them")
        return self

    @model_validator(mode="after")
    def _settings_are_decided(self) -> "ProfileManifest":
        if "auto" in (self.similarity.scale, self.numerics.micro_batch, self.prompt.template):
            raise ValueError("a profile must hold the scale, the micro-batch and the template that were used, not auto")
        if self.numerics.compute != "float32":
            raise ValueError("a profile computes in float32")
        return self
