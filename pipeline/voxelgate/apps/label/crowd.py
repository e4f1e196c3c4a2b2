"""How many may wait for one thing at a time; each holds a thread, and the others shall find one."""

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from threading import BoundedSemaphore

from fastapi import HTTPException


class Crowd:
    """Those who wait for one thing.

    Args:
        what: they wait for.
        most: of them; there are 40 threads (anyio), and whatever else is asked needs one.
    """

    def __init__(self, what: str, most: int = 16) -> None:
        self.what = what
        self._places = BoundedSemaphore(most)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place until the block ends.

        Raises:
            HTTPException: 503 if there is none.
        """
        if not self._places.acquire(blocking=False):
            sentence = f"too many wait for {self.what} already; ask again in a minute."
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, sentence)
        try:
            yield
        finally:
            self._places.release()
