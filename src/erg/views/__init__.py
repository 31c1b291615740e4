"""What an input becomes: the types of a view, the plans that say how views are made, the kernels."""
