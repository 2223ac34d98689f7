"""Marginal likelihoods: latent effects integrated out of a joint density, by Laplace's method and adaptive quadrature."""
