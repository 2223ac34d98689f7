"""What the user brings: a log-density, its parameters, constraints and data."""
