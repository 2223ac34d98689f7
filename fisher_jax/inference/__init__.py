"""What a fit allows one to say: functions of a `Fit` or a `BatchFit`."""
