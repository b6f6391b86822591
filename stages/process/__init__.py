"""This process: its memory, its forks, its clock and its random numbers."""
