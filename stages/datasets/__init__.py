"""Datasets: where they come from, how they are kept on disk, and how they become a model's input."""
