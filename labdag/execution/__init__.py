"""How stages are run: in which order, in which processes, with which record of it."""
