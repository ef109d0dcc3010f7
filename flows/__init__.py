"""Prefect flows that run any dvc.yaml: stages in parallel, each a task, with states that say what happened."""
