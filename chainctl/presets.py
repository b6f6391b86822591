"""Settings to start a recipe from.  Importing them builds the settings' models, so only `recipe new` does."""

from schemas.methods import ChainSettings
from schemas.settings import (
    EncodingSettings,
    FederationSettings,
    OptimizerSettings,
    PromptSettings,
    Settings,
    SimilaritySettings,
    TaskSettings,
)

# The instruction tuning of the ChainFed paper, appendix D: 20 devices, a tenth of them per round, 10 steps of AdamW on
# batches of 16 texts of at most 512 tokens.  Learning rate, schedule and start layer are ours.
INSTRUCTION = Settings(
    task=TaskSettings(kind="causal-lm"),
    prompt=PromptSettings(format="alpaca"),
    encoding=EncodingSettings(max_length=512),
    similarity=SimilaritySettings(reference="first-layer"),  # docs/foat-decoders.md
    optimizer=OptimizerSettings(learning_rate=1e-3, schedule="cosine", schedule_rounds=100, steps=10, batch_size=16),
    federation=FederationSettings(devices_per_round=2),
)

# The paper's chain: FOAT, windows that slide by a layer, foresight through adapters alone.
CHAINFED = Settings(chain=ChainSettings(foresight="adapters").settled())

PRESETS = {"default": Settings(), "instruction": INSTRUCTION, "chainfed": CHAINFED}
