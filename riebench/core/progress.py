"""Progress is shown with a rate and a time left: one moving line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

PLAIN_SECONDS = 10.0  # between two lines where there is no terminal


class Progress:
    """A context manager that shows work counted towards `total`; `update(done, note)` takes the absolute count.

    quiet: show nothing.
    """

    def __init__(self, label: str, total: int, done: int = 0, unit: str = "step", *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.label, self.total, self.done, self.unit = label, total, done, unit
        self._started_at, self._started_done = time.monotonic(), done
        self._spoke_at = 0.0
        self._bar = (
            tqdm(total=total, initial=done, desc=label, unit=unit, dynamic_ncols=True)
            if sys.stderr.isatty() and not quiet
            else None
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, done: int, note: str = "") -> None:
        step, self.done = done - self.done, done
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(step)
            return
        if self.quiet:
            return
        now = time.monotonic()
        if done >= self.total or now - self._spoke_at >= PLAIN_SECONDS:
            self._spoke_at = now
            line = f"{self.label}: {done}/{self.total} {self.unit}s"
            if done > self._started_done:
                rate = (done - self._started_done) / max(now - self._started_at, 1e-9)
                line += f", {rate:.1f} a second, {_clock((self.total - done) / rate)} left"
            print(f"{line}{'; ' + note if note else ''}", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
