"""What makes a stage a well-behaved program: typed options, whole files or none, faults in one sentence."""
