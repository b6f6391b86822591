"""Which weights are NaN or infinite.  It reads them all, so only where what is computed with them is not finite."""

from collections.abc import Iterable

import torch

from schemas.errors import BadInput
from stages.weights.files import StoredTensor, WeightFiles
from stages.weights.writer import entry_on_disk


def check_finite(checkpoint: WeightFiles, tensors: Iterable[StoredTensor]) -> None:
    """Read tensors in constant memory.  Raises `BadInput` for the first that holds a value that is not finite."""
    for tensor in tensors:
        entry = entry_on_disk(checkpoint, tensor)
        wrong = sum(int((~torch.isfinite(block)).sum()) for block in entry.blocks())
        if wrong:
            raise BadInput(
                f"the model holds values that are not finite numbers: {tensor.name}",
                values={"in": tensor.file, "NaN or infinite": f"{wrong} of {entry.values} values"},
                hint="its training diverged, or the file is damaged: get the model again, or an earlier checkpoint",
            )
