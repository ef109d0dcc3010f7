"""Results: metrics of two revisions compared, the summary of a run, and what Prefect shows of it."""
