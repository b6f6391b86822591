"""What the coordinator does with many devices: who takes part, how updates combine, which window comes next."""
