"""What an input becomes: types of views, plans that say how they are made, kernels."""
