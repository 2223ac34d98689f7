"""What a fit allows one to say: functions of a `Fit`, of one fit or of many."""
