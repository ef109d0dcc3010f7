"""Changes to DVC's own functions, in the processes that run stages, and to how it reads files."""
