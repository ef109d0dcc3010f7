"""Deep-learning labs, one module per DVC stage: plain programs that read files and write files."""
