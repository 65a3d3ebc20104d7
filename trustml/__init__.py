"""trustml: trustworthy machine learning for any model written as pure JAX functions."""
