"""Values of the options of a neuron mask; importing them loads no torch."""

METHODS = ("zero", "mean", "noise")
SCOPES = ("layer", "all")
