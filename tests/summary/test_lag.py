"""When the client gets a notice that summaries are behind."""

from app.summary.session import LagNotice


def test_every_change_is_said_once_and_wavering_says_nothing():
    lag = LagNotice()
    pressures = [0.0, 0.49, 0.5, 0.9, 0.3, 0.5, 0.21, 0.2, 0.1, 0.49, 0.6]
    said = [lag.change(pressure, 300) for pressure in pressures]
    behind, over = "summaries are behind: 300 observations wait", "summaries have caught up"
    assert said == [None, None, behind, None, None, None, None, over, None, None, behind]
