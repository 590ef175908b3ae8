"""mvm: masked video modelling in JAX."""
