"""The memory that a recipe's method needs for a window, before there is a plan."""

from schemas.assignment import Assignment
from schemas.refs import Window
from stages.memory.fits import Predict
from stages.memory.predict import MemoryModel
from stages.methods.registry import device_method
from stages.streaming.placement import Placement


def peaks_of_windows(memory: MemoryModel) -> Predict:
    """A function that predicts the peak in bytes of training a window first, with the recipe's method."""
    method = device_method(memory.settings.chain.method)

    def predict(window: Window, placement: Placement) -> int:
        return method.peak_bytes(memory, Assignment.of(window), placement, first_layer=window.start)

    return predict
