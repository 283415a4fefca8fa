"""Ground floor: models, kernels, parallelism, data, training and inference shared by all systems."""
