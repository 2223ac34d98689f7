"""What an estimator does over many simulated data sets, beside what asymptotic theory predicts."""
