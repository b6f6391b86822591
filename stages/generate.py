"""Generate: how does a state continue prompts, and how does the base model?

Reads:  plan and state artifacts of a causal-lm task, the base model, prompts.
Writes: nothing.  Texts are returned, and never stored in an artifact.

The layers stream from disk once per token, for all prompts together, before and after tuning.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from schemas.errors import BadInput, UsageProblem
from schemas.plan import PlanManifest
from stages.data.load import Example
from stages.data.template import question
from stages.inference.full_chain import groups, require_causal_lm
from stages.inference.generate import Generator, Sampling
from stages.process.progress import Progress, Say, silent, unsaid
from stages.session import Machine, Session
from stages.store.trust import open_trusted
from stages.tuning.tuning import UNTUNED, Tuning


@dataclass(frozen=True)
class Answer:
    """The continuation of a prompt under a state, and under the base model (None if not asked for).

    `truncated`: the prompt was longer than the plan allows, and lost its beginning.
    """

    after: str
    before: str | None
    truncated: bool

    def __repr__(self) -> str:
        return f"Answer({len(self.after)} characters)"  # the text may repeat its prompt


def run(
    *,
    machine: Machine,
    plan: Path,
    state: Path,
    prompts: Sequence[Example],
    sampling: Sampling,
    before: bool = False,
    progress: Progress = silent,
    say: Say = unsaid,
) -> list[Answer]:
    """Continue each prompt under `state` and, if `before`, under the base model.

    Prompts that do not fit the budget together run in groups.  `say` is told what an emulated dtype costs here.  Raises
    `BadInput`, `NotTrusted`, `UsageProblem` for a task without a language head, `DoesNotFit` if not even one prompt
    fits.
    """
    planned, current = open_trusted(plan, state)
    settings = require_causal_lm(planned.manifest)
    expected = planned.manifest.model
    opened = Session.open(machine, settings, expected=expected, beside=plan.parent, progress=progress, say=say)
    with opened as session:
        encoder = session.encoder()
        encoded = encoder.encode_prompts(prompts)
        check_room(session.backbone.position_limit, max(len(row) for row, _ in encoded), sampling.max_new_tokens)
        chains = [session.tuning(planned.manifest, current), *([UNTUNED] if before else [])]
        together = not any(chain.changes_layers for chain in chains)
        rows, written = [row for row, _ in encoded], list[list[list[int]]]()
        for passing in [chains] if together else [[chain] for chain in chains]:
            written += _write(session, planned.manifest, passing, rows, sampling, encoder.end_ids)
    said = [[encoder.decode(one) for one in chain] for chain in written]
    return [
        Answer(said[0][index], said[1][index] if before else None, truncated)
        for index, (_, truncated) in enumerate(encoded)
    ]


def check_room(limit: int | None, longest: int, new: int) -> None:
    """The longest prompt and its new tokens are not longer than the model's positions.  Raises `UsageProblem`."""
    if limit is None or longest + new <= limit:
        return
    room = limit - longest
    fewer = f"give at most --max-new-tokens {room}, or shorter prompts" if room else "give shorter prompts"
    raise UsageProblem(
        "the model does not have enough positions for the longest prompt and its continuation",
        values={"limit in tokens": limit, "the prompt": longest, "--max-new-tokens": new},
        hint=fewer,
    )


def _write(
    session: Session,
    plan: PlanManifest,
    chains: Sequence[Tuning],
    ids: Sequence[np.ndarray],
    sampling: Sampling,
    stops: frozenset[int],
) -> list[list[list[int]]]:
    """New token ids of each chain and prompt; as many prompts at a time as fit the budget.  Raises `DoesNotFit`."""
    written: list[list[list[int]]] = [[] for _ in chains]
    budget = session.machine.budget_bytes
    assert session.pad_id is not None
    for group in groups(session.backbone, plan, ids, sampling, chains=len(chains), budget_bytes=budget):
        generator = Generator(session.backbone, chains, sampling, stops, session.pad_id, group.placement)
        for texts, found in zip(written, generator.run(group.prompts, session.progress), strict=True):
            texts += found
    return written


def as_prompts(texts: Sequence[str], plan: PlanManifest) -> list[Example]:
    """Typed texts as prompts: the beginning of a text, or a question if the plan has dialogues.

    Raises `BadInput` for an empty prompt.
    """
    if not texts or not all(text.strip() for text in texts):
        raise BadInput("a prompt is empty", values={"prompts": len(texts)}, hint="give --prompt TEXT")
    plain = plan.settings.prompt.format == "plain"
    return [Example(text, None) if plain else question(text) for text in texts]
