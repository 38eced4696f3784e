"""How good a model is, and what a number means."""
