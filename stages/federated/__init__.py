"""What the coordinator does with many devices: who takes part, which updates count, how they combine."""
