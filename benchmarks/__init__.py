"""Measurements of labdag: what its labs reach. They are no tests; what they measure depends on the machine."""
