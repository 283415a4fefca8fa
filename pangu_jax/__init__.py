"""Ground floor: models, kernels, parallelism, data, training, inference; shared by all systems."""
