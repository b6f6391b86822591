"""Nothing trains: the base model with a fresh head, which every other method is compared with."""
