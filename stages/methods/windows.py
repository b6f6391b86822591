"""What a recipe's method would need for a window, before there is a plan."""

from schemas.refs import Window
from stages.memory.fits import Predict
from stages.memory.predict import MemoryModel
from stages.methods.registry import device_method
from stages.streaming.placement import Placement


def peaks_of_windows(memory: MemoryModel) -> Predict:
    """Predicts the peak in bytes of training a window that the chain starts with, as the recipe's method trains it."""
    method = device_method(memory.settings.chain.method)

    def predict(window: Window, placement: Placement) -> int:
        return method.peak_bytes(memory, window, placement, first_layer=window.start)

    return predict
