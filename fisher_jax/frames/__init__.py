"""Formulas: the model, the design and the names that they stand for."""
