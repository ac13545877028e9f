"""Kinds of neuron masks; importing them loads no torch."""

KINDS = ("own", "same_type", "different_type", "random")
