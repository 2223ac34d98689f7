"""What a fit allows one to say: covariances and intervals, as functions of plain arrays."""
