"""How sure a fit is: covariances and intervals, as functions of plain arrays."""
