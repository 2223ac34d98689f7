"""Profile likelihoods: restricted maxima, the path along them, and its ends."""
