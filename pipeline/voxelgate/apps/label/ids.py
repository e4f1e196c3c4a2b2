"""What a client may call things: ids of images, tags of labels and versions, which all become names of files."""

import re

from voxelgate.core.errors import InputError

MOST_ID_CHARACTERS = 200
"""Below the 255 bytes that file systems allow for a name, with room for suffixes."""

_ID = re.compile(r"\w[\w .,()+=@-]*")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def is_id(text: str) -> bool:
    """Return whether a text can be the id of an image: a file name without separators that is not hidden.

    >>> is_id("case 01.left"), is_id("../case"), is_id(".hidden"), is_id("a..b")
    (True, False, False, False)
    """
    is_short = len(text.encode()) <= MOST_ID_CHARACTERS
    return is_short and _ID.fullmatch(text) is not None and ".." not in text and text == text.strip()


def check_id(text: str) -> str:
    """Return the id of an image or session.

    Raises:
        InputError: it could name a file elsewhere, or none.
    """
    if not is_id(text):
        raise InputError(
            f"an id of {len(text)} characters is no plain name; use letters, digits, spaces and . , ( ) + = @ - _ only."
        )
    return text


def is_tag(text: str) -> bool:
    """Return whether a text can be the tag of a label map.

    >>> is_tag("final"), is_tag("../final")
    (True, False)
    """
    return _TAG.fullmatch(text) is not None


def check_tag(text: str) -> str:
    """Return the tag of a label, which becomes the name of a folder.

    Raises:
        InputError: it is no such name.
    """
    if not is_tag(text):
        raise InputError(
            f"a tag of {len(text)} characters is no plain name; use up to 64 letters, digits, - and _, such as final."
        )
    return text
