"""Retraining: upstream data, the gate, the registry, and what past retrainings did."""
