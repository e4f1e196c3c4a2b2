"""Images that are kept for some proposals: under names that nobody guesses, and not longer than was said."""

import logging
import secrets
import time
from pathlib import Path
from typing import Any

from monailabel.utils.sessions import Sessions

logger = logging.getLogger(__name__)


class ImageSessions(Sessions):  # type: ignore[misc]  # monailabel ships no types for mypy
    """MONAI Label's sessions; its own names are made of time and machine, and its clean-up ends at a bad folder."""

    def keep(self, image: Path, expiry_s: int) -> tuple[str, Any]:
        """Move an image into a session; return its name and facts."""
        name, facts = self.add_session(str(image), max(0, expiry_s), session_id=secrets.token_hex(16))
        return str(name), facts

    def remove_expired(self) -> int:
        """Remove the sessions whose time is over, and folders that are none; return how many."""
        found = [path for path in Path(self.store_path).glob("*") if path.is_dir()]
        over = [path.name for path in found if self._is_over(path)]
        for name in over:
            self.remove_session(name)
        return len(over)

    def _is_over(self, folder: Path) -> bool:
        facts = self.get_session(folder.name, update_ts=False)
        try:
            since = folder.stat().st_mtime if facts is None else facts.last_access_ts
        except FileNotFoundError:
            return False
        return bool(since + (self.expiry if facts is None else facts.expiry) < time.time())
