"""Names that `dynamic_network_architectures` imports; none is ever built."""


class EvaBlock:
    """Never built."""
