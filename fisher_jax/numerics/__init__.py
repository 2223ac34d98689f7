"""Numerical methods on plain arrays: no models here."""
