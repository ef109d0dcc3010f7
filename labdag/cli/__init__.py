"""The commands of `labdag`."""
