"""What is inferred from a fit: functions of a `Fit`, of one fit or of many."""
