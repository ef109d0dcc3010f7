"""DVC's own tests of `dvc repro`, held against labdag."""
