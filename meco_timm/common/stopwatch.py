"""How much of a run's time its training steps take."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Sum of wall seconds over several timed blocks."""

    def __init__(self) -> None:
        self.seconds, self._began = 0.0, 0.0

    def __enter__(self) -> "Stopwatch":
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.monotonic() - self._began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Pause timing inside the block."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()


def share_of_time(whole: Stopwatch, part: Stopwatch, what: str) -> str:
    """Format as "1 min 52 s, 84 % of it in training steps"."""
    minutes, seconds = divmod(round(whole.seconds), 60)
    length = f"{minutes} min {seconds} s" if minutes else f"{whole.seconds:.1f} s"
    return f"{length}, {100 * part.seconds / max(whole.seconds, 1e-9):.0f} % of it in {what}"
