"""The nouns that content (specs, kernels) and machinery (compile, measure, cache, selection,
tuning) share."""
