"""Which devices take part in a round: a function of seed, round and names, so that anyone can recompute it."""

from collections.abc import Sequence

from schemas.devices import PARTICIPANTS_FILE, Participant
from schemas.plan import PlanManifest
from stages.process import seeds
from stages.store.artifact import Artifact
from stages.store.devices import names_with_texts
from stages.store.lines import Lines, encode_lines


def sample_participants(plan: Artifact[PlanManifest], round_number: int) -> Lines:
    """The participants of a round, for its state, drawn from the planned devices that have texts.

    Raises `NotTrusted` and `BadInput` for a plan whose devices cannot be read.
    """
    settings = plan.manifest.settings
    names = names_with_texts(plan)
    drawn = sample_devices(settings.seed, round_number, names, settings.federation.devices_per_round)
    return encode_lines(PARTICIPANTS_FILE, (Participant(name=name) for name in drawn))


def sample_devices(seed: int, round_number: int, devices: Sequence[str], count: int | str) -> tuple[str, ...]:
    """The devices of a round, sorted: all of them, or `count` drawn without replacement from SHA-256(seed, round)."""
    names = sorted(devices)
    if count == "all" or int(count) >= len(names):
        return tuple(names)
    random = seeds.generator("sample", seed, round_number)
    drawn = random.choice(len(names), size=int(count), replace=False)
    return tuple(names[index] for index in sorted(drawn.tolist()))
