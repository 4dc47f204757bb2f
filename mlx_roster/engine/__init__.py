"""One model being served: the only code, with the loaders, that runs mlx."""
