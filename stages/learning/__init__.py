"""Learning: the recipe, the training loop, scoring, and the weights on disk."""
