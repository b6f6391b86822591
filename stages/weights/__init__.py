"""A model's files: which tensors there are, under which names, read and written in constant memory."""
