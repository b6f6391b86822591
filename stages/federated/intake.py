"""Every check that an update must pass before a single value of it counts.

An update comes from a device that nobody controls, over media that nobody controls.  Each check has a reason of its
own (`schemas/refusal.py`); the first that fails refuses that update and no other.  Nothing is parsed before its size
is bounded.
"""

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from schemas.errors import BadInput, ChainError, NotTrusted, some
from schemas.plan import PlanManifest
from schemas.refusal import Reason
from schemas.state import StateManifest
from schemas.update import UpdateManifest
from stages.federated.delivery import (
    Delivery,
    RefusedUpdate,
    by_device,
    candidates,
    claims_to_be_an_update,
    counted_once,
    equivocations,
    is_link,
    refused_update,
)
from stages.federated.rules import Expected, Rules, Update
from stages.federated.values import Values, norm
from stages.store.artifact import Artifact, open_artifact, tensor_file
from stages.store.devices import participants, planned_devices
from stages.store.folder import identity_of
from stages.store.snapshot import snapshot
from stages.store.tensors import elements
from stages.store.trust import check_device_signature

# What AdamW moves an element in a step, at most, in learning rates: (1 - β₁) / √(1 - β₂), Kingma & Ba 2015, §2.1.
ADAM_STEP = 0.1 / math.sqrt(0.001)
ROUNDING = 1.01


Judgement = tuple[Update | None, RefusedUpdate | None]
Judged = MutableMapping[object, Judgement]


@dataclass(frozen=True, slots=True)
class Known:
    """What updates of a device are judged by: its key, None where nothing is signed, and the texts it may have."""

    key: str | None
    max_example_count: int


@dataclass(frozen=True)
class Intake:
    """The round that updates are for.  `counted`: digests of updates that counted in earlier rounds.

    `judged`: what was said of updates before, by what their files were; who only looks, again and again, keeps it.
    """

    plan: Artifact[PlanManifest]
    parent: Artifact[StateManifest]
    counted: Mapping[str, int]
    rules: Rules
    judged: Judged = field(default_factory=dict)

    @cached_property
    def devices(self) -> dict[str, "Known"]:
        """The participants of the round that the plan knows, by name; read once, however many updates arrive.

        Raises `NotTrusted` and `BadInput` where plan or state cannot be read.
        """
        names = set(participants(self.parent))
        return {
            device.name: Known(device.key, device.max_example_count)
            for device in planned_devices(self.plan)
            if device.name in names
        }

    def take(self, paths: Sequence[Path]) -> Delivery:
        """Sort what arrived.  Neither the order of `paths` nor the same update twice makes a difference."""
        _ = self.devices  # read first: a broken plan or state is not an update's fault
        tensor_file(self.parent).close()
        delivery = Delivery()
        whole: dict[str, Update] = {}
        for path in candidates(paths, delivery.ignored):
            with suppress(OSError):  # it has gone: that is said when it is examined
                delivery.judged[path] = identity_of(path.lstat())
            if not claims_to_be_an_update(path):
                delivery.ignored.append(path)
                continue
            update, refusal = self._judge(path)
            if refusal is not None:
                delivery.refused.append(refusal)
            elif update is None:
                delivery.counted.append(path)
            else:
                whole.setdefault(update.digest, update)
        wrong = equivocations(sorted(whole.values(), key=by_device))
        delivery.refused += [
            refused_update(whole[digest], "equivocation", error) for digest, error in sorted(wrong.items())
        ]
        sound = sorted((update for update in whole.values() if update.digest not in wrong), key=by_device)
        delivery.accepted, delivery.same = counted_once(sound)
        return delivery

    def _judge(self, path: Path) -> Judgement:
        """`_examine`, once for as long as the files of an update do not change."""
        files = (self.parent.digest, snapshot([path], depth=1))
        if files not in self.judged:
            self.judged[files] = self._examine(path)
        return self.judged[files]

    def _examine(self, path: Path) -> Judgement:
        """The update if it counts; None if it counted already; or why it is refused."""
        if is_link(path):
            error = NotTrusted(f"{path} is a link", values={"expected": "a directory"}, hint="copy the artifact itself")
            return None, RefusedUpdate(path, "link", error, None, None)
        try:
            update = open_artifact(path, UpdateManifest)
        except ChainError as error:
            reason: Reason = "altered" if isinstance(error, NotTrusted) else "unreadable"
            return None, RefusedUpdate(path, reason, error, None, None)
        except OSError as error:
            return None, RefusedUpdate(path, "unreadable", _unreadable(path, error), None, None)
        if update.digest in self.counted:
            return None, None
        for reason, check in self.checks(update):
            try:
                check()
            except ChainError as error:
                return None, refused_update(update, reason, error)
            except OSError as error:
                return None, refused_update(update, "unreadable", _unreadable(path, error))
        return update, None

    def checks(self, update: Update) -> list[tuple[Reason, Callable[[], None]]]:
        """Each with its reason, cheap ones first; the last three look at the values, which are read once."""
        found, here = update.manifest, self.parent.manifest
        values = Values(update, self.parent)
        return [
            ("another-plan", lambda: _agree(update, "plan", self.plan.digest, found.plan)),
            ("another-round", lambda: _agree(update, "round", here.round, found.round)),
            ("another-state", lambda: _agree(update, "state", self.parent.digest, found.state)),
            ("another-device", lambda: self._check_device(update)),
            ("another-assignment", lambda: self._check_assignment(update)),
            ("signature", lambda: self._check_signature(update)),
            ("example-count", lambda: self._check_example_count(update)),
            ("step-count", lambda: self._check_steps(update)),
            ("tensors", lambda: self._check_tensors(update)),
            ("numbers", lambda: self._check_numbers(update)),
            ("altered", values.read),
            ("not-finite", values.check_finite),
            ("norm", lambda: values.check_norm(self.norm_cap(update))),
        ]

    def _check_device(self, update: Update) -> None:
        if update.manifest.device not in self.devices:
            raise BadInput(
                f"{update.path}: device {update.manifest.device} does not take part in round "
                f"{self.parent.manifest.round}",
                values={"expected": some(list(self.devices)), "found": update.manifest.device},
                hint="its turn will come, or it is of another federation",
            )

    def _check_assignment(self, update: Update) -> None:
        """What the device was to train, or a part of it that counts: a device trains what it can hold."""
        device, trained = update.manifest.device, update.manifest.assignment
        assigned = self.rules.assignment(self.plan.manifest, self.parent.manifest, device)
        if not self.rules.may_train(assigned, trained):
            raise BadInput(
                f"{update.path} trained something else than device {device} was assigned",
                values={"expected": f"{assigned}, or a part of it that counts", "found": trained},
                hint="check which artifacts were given",
            )

    def _check_signature(self, update: Update) -> None:
        if self.plan.manifest.trust.required:
            check_device_signature(update, self.devices[update.manifest.device].key)

    def _check_example_count(self, update: Update) -> None:
        most = self.devices[update.manifest.device].max_example_count
        check_example_count(update.manifest.device, update.manifest.example_count, most)

    def _check_steps(self, update: Update) -> None:
        expected = self.plan.manifest.settings.optimizer.step_count(update.manifest.example_count)
        if update.manifest.steps != expected:
            raise BadInput(
                f"{update.path} took another number of steps than its texts ask for",
                values={"expected": expected, "found": update.manifest.steps},
                hint="the update was made with other settings or altered: train again",
            )

    def _check_tensors(self, update: Update) -> None:
        expected = self._expected(update).shapes
        found = {tensor.name: tensor.shape for tensor in update.manifest.tensors}
        if expected != found:
            wrong = sorted(set(expected.items()) ^ set(found.items()))[0][0]
            raise BadInput(
                f"{update.path} does not hold the tensors that round {self.parent.manifest.round} trains",
                values={
                    "expected": f"{len(expected)} tensors",
                    "found": f"{len(found)} tensors",
                    "first that differs": wrong,
                },
                hint="the update was made by another version or altered: train again",
            )

    def _check_numbers(self, update: Update) -> None:
        """The numbers that the method asks for; that they are finite, the manifest sees to."""
        expected, found = self._expected(update).numbers, update.manifest.numbers.keys()
        if expected != found:
            raise BadInput(
                f"{update.path} does not report the numbers that its method asks for",
                values={"expected": ", ".join(sorted(expected)) or "none", "found": f"{len(found)} numbers"},
                hint="the update was made by another version or altered: train again",
            )

    def norm_cap(self, update: Update) -> float | None:
        """Largest L2 norm of update − state, None where the plan sets none.

        `auto` with AdamW: an element moves by at most ADAM_STEP · η a step, and decoupled decay shrinks what was
        there by η · decay of itself, so ‖Δ‖ ≤ steps · η · (ADAM_STEP · √elements + decay · ‖state‖).  There is no such
        bound where tensors are not the state's own.
        """
        settings = self.plan.manifest.settings
        chosen = settings.federation.max_update_norm
        if chosen == "none" or (chosen == "auto" and settings.optimizer.name != "adamw"):
            return None
        if chosen != "auto":
            return chosen
        shapes = self._expected(update).shapes
        if not shapes.items() <= {one.name: one.shape for one in self.parent.manifest.tensors}.items():
            return None
        optimizer, steps = settings.optimizer, update.manifest.steps
        rate = optimizer.rate(self.parent.manifest.round)
        root = math.sqrt(sum(elements(shape) for shape in shapes.values()))
        shrinks = optimizer.weight_decay * norm(self.parent, shapes) if optimizer.weight_decay else 0.0
        return ROUNDING * steps * rate * (ADAM_STEP * root + shrinks)

    def _expected(self, update: Update) -> Expected:
        return self.rules.expected(self.plan.manifest, self.parent.manifest, update.manifest.assignment)


def check_example_count(device: str, count: int, most: int) -> None:
    """A device says it has no more texts than the plan lets it.  Raises `BadInput`."""
    if count > most:
        raise BadInput(
            f"device {device} has more texts than the plan lets it count",
            values={"at most": most, "found": count},
            hint="profile and plan again, or enrol the device with a larger max_examples",
        )


def _agree(update: Update, what: str, expected: object, found: object) -> None:
    if expected != found:
        raise BadInput(
            f"{update.path} is of another {what}",
            values={"expected": expected, "found": found},
            hint="check which artifacts were given",
        )


def _unreadable(path: Path, error: OSError) -> BadInput:
    """What the operating system refused to read."""
    return BadInput(
        f"{path} cannot be read",
        values={"reason": error.strerror or type(error).__name__},
        hint="copy the update again",
    )
