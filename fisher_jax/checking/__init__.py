"""Checks of a fitted model against its data."""
