"""The progress bar: hours of audio, their rate and the time left; silent where there is no terminal."""

import io

import pytest

from pipeline.extraction import progress
from pipeline.extraction.progress import Progress, Unit

HOURS = Unit("h of audio", "h", 3600, digits=2)


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


def test_it_shows_hours_their_rate_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(progress.Bar, "monitor_interval", 0)
    with Progress("audio", HOURS, 7200) as bar:
        bar.bar.mininterval = 0
        bar.bar.start_t -= 30
        bar.advance(3600)
        shown = str(bar.bar)
    assert "audio:  50%" in shown
    assert "1.00/2.00 h of audio" in shown
    assert "00:30<00:3" in shown  # as long again
    assert "2.00 h a minute" in shown or "1.99 h a minute" in shown


def test_without_a_terminal_it_is_silent_and_tells_its_speed_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("audio", HOURS, 7200) as bar:
        bar.advance(1800)
        bar.started -= 90
    assert capsys.readouterr() == ("", "")
    assert bar.speed() == "; 0.50 h of audio in 1.5 min, 0.33 h a minute"


def test_a_resumed_run_begins_at_what_is_done_and_its_rate_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setattr(progress.Bar, "monitor_interval", 0)
    with Progress("audio", HOURS, 7200, kept=3600) as bar:
        bar.bar.mininterval = 0
        assert "audio:  50%" in str(bar.bar)
        assert "1.00/2.00 h of audio [00:00<?]" in str(bar.bar)
        bar.bar.start_t -= 30
        bar.advance(1800)
        shown = str(bar.bar)
    assert "audio:  75%" in shown
    assert "1.50/2.00 h of audio" in shown
    assert "00:30<00:3" in shown  # as much again
    assert "1.00 h a minute" in shown or "0.99 h a minute" in shown


def test_nothing_done_has_no_speed() -> None:
    with Progress("text", Unit("tokens", "tokens", 1, digits=0), 0) as bar:
        pass
    assert bar.speed() == ""
