"""Why updates did not count, in words."""

from collections.abc import Mapping

from schemas.refusal import Reason

MEANINGS: Mapping[Reason, str] = {
    "unreadable": "it has no manifest that can be read, or one of a newer version",
    "altered": "its bytes are not those that its manifest lists",
    "link": "a link stood where its folder should be",
    "another-plan": "it was made for another plan",
    "another-state": "it was trained from another state",
    "another-round": "it was made for another round",
    "another-assignment": "it trained something else than it was assigned",
    "another-device": "its device did not take part in the round",
    "signature": "it was not signed, or not with the key of its device",
    "example-count": "it claims more texts than its device enrolled",
    "step-count": "it took another number of steps than its texts ask for",
    "tensors": "it does not hold the tensors that were assigned",
    "numbers": "it does not report the numbers that the method asks for",
    "not-finite": "it holds values that are not finite",
    "norm": "it is farther from the state than the plan allows",
    "equivocation": "its device sent different updates",
    "copy": "it holds the tensors of another device's update",
}
