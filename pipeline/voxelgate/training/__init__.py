"""From a data set to a trained bundle: planning, configs, training, cross-validation."""
