"""The two names that `monailabel/transform/post.py` and `monailabel/deepedit/handlers.py` import."""

from typing import NoReturn


def make_grid(*_: object, **__: object) -> NoReturn:
    """Refuse to make a picture.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError("torchvision is not installed; install it to write pictures of a training.")


save_image = make_grid
