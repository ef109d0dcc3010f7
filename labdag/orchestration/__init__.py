"""Prefect's API: servers, deployments, the worker."""
