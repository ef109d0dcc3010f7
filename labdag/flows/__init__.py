"""The flows: bring stages up to date, sweep over values of params, retrain a model."""
