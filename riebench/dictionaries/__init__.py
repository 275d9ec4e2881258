"""Dictionaries of a backbone's activations: harvested, trained, evaluated."""
