"""Models made from models: censored and truncated ones, mixtures, joint models, distributions of other libraries."""
