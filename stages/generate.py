"""Generate: what does a state say, and what did the model say before?

Reads:  plan and state artifacts of a causal-lm task, the base model, prompts.
Writes: nothing.  Texts go to whoever asked, and into no artifact.

The layers stream from disk once a token, for all prompts together, before and after tuning.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from schemas.errors import BadInput
from schemas.plan import PlanManifest
from stages.data.encode import Encoder
from stages.data.load import Example
from stages.data.template import question
from stages.inference.full_chain import groups, load_chain, require_causal_lm, stop_tokens
from stages.inference.generate import Generator, Sampling
from stages.model.backbone import Backbone
from stages.model.loading import LoadedModel
from stages.process.measure import Stopwatch, device_memory_bytes
from stages.process.progress import Progress, silent
from stages.store.trust import open_trusted
from stages.weights.reader import Verify


@dataclass(frozen=True)
class Answer:
    """What follows a prompt under a state, and under the base model (None where not asked for).

    `cut`: the prompt was longer than the plan allows, and its end was read.
    """

    after: str
    before: str | None
    cut: bool

    def __repr__(self) -> str:
        return f"Answer({len(self.after)} characters)"  # a text may repeat what it was asked


def run(
    *,
    model_dir: Path,
    plan: Path,
    state: Path,
    prompts: Sequence[Example],
    sampling: Sampling,
    before: bool = False,
    memory_budget_bytes: int | None = None,
    progress: Progress = silent,
    model: LoadedModel | None = None,
    verify: Verify = "once",
) -> list[Answer]:
    """Go on with each prompt under `state` and, where `before`, under the base model.

    Prompts that do not fit the budget together go in groups.  Raises `BadInput`, `NotTrusted`, `UsageProblem` for a
    task without a language head, `DoesNotFit` where not even one prompt fits.
    """
    planned, current = open_trusted(plan, state)
    settings = require_causal_lm(planned.manifest)
    with Stopwatch(memory_budget_bytes) as watch:
        torch.set_num_threads(settings.numerics.threads)
        encoder = model.encoder if model else Encoder.load(model_dir, settings.encoding, settings.prompt)
        encoded = [encoder.encode_prompt(prompt) for prompt in prompts]
        backbone = (
            model.backbone
            if model
            else Backbone.open(
                model_dir, settings, pad_id=encoder.pad_id, expected=planned.manifest.model, verify=verify
            )
        )
        chains = [load_chain(backbone, current, planned.manifest), *([{}] if before else [])]
        ids = [row for row, _ in encoded]
        budget = memory_budget_bytes or device_memory_bytes()
        written: list[list[list[int]]] = [[] for _ in chains]
        for group in groups(backbone, planned.manifest, ids, sampling, chains=len(chains), budget_bytes=budget):
            generator = Generator(backbone, chains, sampling, stop_tokens(model_dir), encoder.pad_id, group.placement)
            for texts, found in zip(written, generator.run(group.prompts, watch.over(progress)), strict=True):
                texts += found
    said = [[encoder.decode(one) for one in chain] for chain in written]
    return [Answer(said[0][index], said[1][index] if before else None, cut) for index, (_, cut) in enumerate(encoded)]


def as_prompts(texts: Sequence[str], plan: PlanManifest) -> list[Example]:
    """What a person typed: the beginning of a text, or a question where the plan has dialogues.

    Raises `BadInput` for an empty one.
    """
    if not texts or not all(text.strip() for text in texts):
        raise BadInput("a prompt is empty", values={"prompts": len(texts)}, hint="give --prompt TEXT")
    plain = plan.settings.prompt.format == "plain"
    return [Example(text, None) if plain else question(text) for text in texts]
