"""Progress lines say what a stopwatch and a pocket calculator say."""

import io
import time

from input_pipeline.progress import Progress, clock, line


def test_a_line_tells_count_rate_and_time_left() -> None:
    assert line(50, 200, 10.0) == "[######..................]  50/200 videos  5.0/s  0:30 left"
    assert (
        line(200, 200, 40.0, "files") == "[########################] 200/200 files  5.0/s  in 0:40"
    )
    assert line(0, 7, 3.0).endswith("0/7 videos  0.0/s  -:-- left")
    assert line(1200, 0, 4.0, "files") == "1200 files  300/s  0:04"


def test_clock() -> None:
    assert [clock(s) for s in (0, 59.6, 3599, 3661)] == ["0:00", "1:00", "59:59", "1:01:01"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_one_line_that_ends_with_the_work() -> None:
    out = Terminal()
    progress = Progress(stream=out)
    for done in range(1, 4):
        time.sleep(0.21)
        progress(done, 3)
    progress.end()
    assert out.getvalue().count("\r") == 3
    assert out.getvalue().count("\n") == 1
    assert out.getvalue().endswith("\n")


def test_a_file_has_no_line_before_its_time_but_always_the_last() -> None:
    out = io.StringIO()
    progress = Progress(stream=out)
    for done in range(1, 101):
        progress(done, 100)
    assert out.getvalue().count("\n") == 1
    assert "100/100" in out.getvalue()
