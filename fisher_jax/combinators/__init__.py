"""Models made from models: mixtures, joint models of several data sets, distributions of other libraries."""
