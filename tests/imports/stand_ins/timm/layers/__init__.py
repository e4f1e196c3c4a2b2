"""Names that `dynamic_network_architectures` imports; none is ever built."""


def __getattr__(name: str) -> type:
    return type(name, (), {})
