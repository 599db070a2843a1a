"""A clock that nobody sets: the time of day as it was at the start, and the seconds since."""

import time


class SteadyClock:
    """Unlike `time.time()` it neither jumps nor goes back while the process lives."""

    def __init__(self) -> None:
        self.started_unix_s, self._started_s = time.time(), time.monotonic()

    def unix_s(self) -> float:
        """Seconds since 1970, as far as the machine knew at the start."""
        return self.started_unix_s + time.monotonic() - self._started_s
