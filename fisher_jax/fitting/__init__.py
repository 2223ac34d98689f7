"""Maximum likelihood: from a model and data to fits with a status."""
