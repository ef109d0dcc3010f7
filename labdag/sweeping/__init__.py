"""Sweeps: their points, the search for better ones, and what is kept and shown of them."""
