"""How much memory a stage will need, and what fits a budget."""
