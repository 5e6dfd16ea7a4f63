"""Times beside a progress bar, with what they are."""

from __future__ import annotations

from datetime import timedelta

from rich.progress import ProgressColumn, Task
from rich.text import Text


class Elapsed(ProgressColumn):
    """The time since the task began."""

    def render(self, task: Task) -> Text:
        """0:01:10 elapsed."""
        seconds = task.finished_time if task.finished else task.elapsed
        return Text(f"{timedelta(seconds=int(seconds or 0))} elapsed", style="progress.elapsed")


class LeftOrElapsed(Elapsed):
    """The time that the task still takes, as far as is known; when it is finished, the time that it took."""

    max_refresh = 0.5  # seconds: estimates of each moment jump

    def render(self, task: Task) -> Text:
        """0:01:10 left, or 0:02:20 elapsed."""
        if task.finished or task.time_remaining is None:
            return super().render(task)
        return Text(f"{timedelta(seconds=int(task.time_remaining))} left", style="progress.remaining")
