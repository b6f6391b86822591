"""The memory that a recipe's method needs for a window, before there is a plan."""

from schemas.assignment import Assignment
from schemas.refs import Window
from stages.memory.fits import Predict
from stages.memory.predict import MemoryModel
from stages.methods.registry import device_method
from stages.streaming.placement import Placement


def peaks_of_windows(memory: MemoryModel, *, with_files: bool = False) -> Predict:
    """A function that predicts the peak in bytes of training a window first, with the recipe's method.

    `with_files`: temporary files are in memory too.
    """
    method = device_method(memory.settings.chain.method)

    def predict(window: Window, placement: Placement) -> int:
        assignment = Assignment.of(window)
        files = method.scratch_bytes(memory, assignment, placement) if with_files else 0
        return files + method.peak_bytes(memory, assignment, placement, first_layer=window.start)

    return predict
