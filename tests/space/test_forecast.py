"""The forecast: a straight line through what a bounded ring remembers."""

from __future__ import annotations

from pathlib import Path

from cowengine import Volume
from cowengine.engine.forecast import SAMPLES_MAX, Forecast, full_in_seconds


def test_a_steady_stream_is_foreseen() -> None:
    forecast = Forecast()
    assert forecast.bytes_a_minute(100.0, 0) is None
    for second in range(10_000):
        forecast.add(100.0 + second, 1000 * second)
        assert len(forecast._samples) <= SAMPLES_MAX
    assert forecast.bytes_a_minute(10_100.0, 10_000_000) == 60_000
    assert full_in_seconds(120_000, 60_000) == 120


def test_what_went_on_hours_ago_does_not_count_any_more() -> None:
    forecast = Forecast()
    for second in range(5 * 3600):
        forecast.add(float(second), min(second, 3600) * 1000)
    assert forecast.bytes_a_minute(5 * 3600.0, 3_600_000) == 0


def test_nothing_is_foreseen_without_growth_or_time() -> None:
    assert full_in_seconds(1000, None) is None
    assert full_in_seconds(1000, 0) is None
    assert full_in_seconds(1000, -5) is None
    assert full_in_seconds(0, 60) == 0


def test_stats_say_what_the_file_takes_and_what_is_free(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "v", 1 << 20, background=False) as volume:
        before = volume.stats()
        volume.pwrite(bytes(range(256)) * 2048, 0)
        volume.flush()
        after = volume.stats()
        assert after["taken_bytes"] > before["taken_bytes"] > 0
        assert after["free_bytes"] > 0 and after["snapshots_given_up"] == 0
        volume.engine.space._forecast._samples[0] = (before["taken_bytes"] * 0.0 - 60.0, 0)  # long ago, nothing
        later = volume.stats()
        assert later["new_bytes_a_minute"] > 0 and later["full_in_seconds"] >= 0
    assert volume.stats()["taken_bytes"] == 0  # closed
