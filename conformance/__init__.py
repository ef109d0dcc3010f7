"""Runs DVC's own tests of `dvc repro` against labdag."""
