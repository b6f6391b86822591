"""Who trains what, and how it becomes the next state: one folder for each method."""
