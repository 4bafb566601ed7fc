"""Joules a caption from counters and power meters made of files, with a clock that the tests turn."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from machines import PMIC, lay_out, pretend_vcgencmd

from captionlite.benchmarks.energy import Energy, Rapl, Reading, describe, find_meter, pmic_watts

PACKAGE = "sys/class/powercap/intel-rapl:0/"
RAPL = {
    f"{PACKAGE}name": "package-0",
    f"{PACKAGE}energy_uj": "1000000",
    f"{PACKAGE}max_energy_range_uj": "5000000",
    "sys/class/powercap/intel-rapl:0:0/name": "core",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": "77",
    "sys/class/powercap/intel-rapl:1/name": "psys",
    "sys/class/powercap/intel-rapl:1/energy_uj": "88",
}


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock() -> Iterator[Clock]:
    return Clock()


@pytest.fixture(autouse=True)
def no_firmware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


def test_rapl_counts_the_packages_alone_and_goes_on_when_the_counter_starts_again(tmp_path: Path, clock: Clock) -> None:
    root = lay_out(tmp_path, RAPL)
    meter, _ = find_meter(root)
    assert isinstance(meter, Rapl)
    assert meter.name == "powercap/RAPL (package-0)"
    energy = Energy(meter, clock)
    energy.start()
    for count_uj in (4_000_000, 500_000):  # 3 J, then 1 J to the limit and half a J from 0
        clock.sleep(2)
        lay_out(root, {f"{PACKAGE}energy_uj": str(count_uj)})
        energy.sample()
    assert energy.stop() == Reading(pytest.approx(4.5), 4.0)
    energy.start()  # a second span counts from its own beginning
    clock.sleep(1)
    lay_out(root, {f"{PACKAGE}energy_uj": "600000"})
    assert energy.stop() == Reading(pytest.approx(0.1), 1.0)


def test_a_power_meters_energy_is_the_area_below_its_readings(tmp_path: Path, clock: Clock) -> None:
    chip = "sys/class/hwmon/hwmon3/"
    root = lay_out(tmp_path, {f"{chip}name": "ina219", f"{chip}power1_input": "2000000"})
    lay_out(root, {"sys/class/hwmon/hwmon1/name": "k10temp"})
    meter, _ = find_meter(root)
    assert meter is not None
    assert meter.name == "ina219 (hwmon3)"
    energy = Energy(meter, clock)
    energy.start()
    clock.sleep(1)
    lay_out(root, {f"{chip}power1_input": "4000000"})
    energy.sample()  # 3 J
    clock.sleep(0.01)
    lay_out(root, {f"{chip}power1_input": "9000000000"})
    energy.sample()  # too soon to ask again
    lay_out(root, {f"{chip}power1_input": "4000000"})
    clock.sleep(1.99)
    assert energy.stop() == Reading(pytest.approx(11.0), pytest.approx(3.0))


def test_idling_is_measured_before(tmp_path: Path, clock: Clock) -> None:
    chip = "sys/class/hwmon/hwmon0/"
    meter, _ = find_meter(lay_out(tmp_path, {f"{chip}name": "ina226", f"{chip}power1_input": "1500000"}))
    assert meter is not None
    idle = Energy(meter, clock).idle(3.0, clock.sleep)
    assert idle.seconds == pytest.approx(3.0, abs=0.11)
    assert idle.watts == pytest.approx(1.5)


def test_a_pi_5s_power_chip_sums_its_rails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    pretend_vcgencmd(tmp_path / "bin", monkeypatch, {"pmic_read_adc": PMIC})
    assert pmic_watts() == pytest.approx(0.1 * 3.3 + 2 * 0.8)  # EXT5V has no current
    meter, _ = find_meter(tmp_path)
    assert meter is not None
    assert meter.name.startswith("Raspberry Pi PMIC")
    (tmp_path / "bin" / "vcgencmd").unlink()
    with pytest.raises(OSError, match="does not answer any more"):
        Energy(meter, clock).start()


def test_without_a_meter_it_says_which_were_looked_for(tmp_path: Path) -> None:
    meter, reason = find_meter(tmp_path)
    assert meter is None
    assert all(name in reason for name in ("powercap/RAPL", "INA219", "pmic_read_adc"))


def test_a_counter_that_is_the_superusers_is_named(tmp_path: Path) -> None:
    files = {name: text for name, text in RAPL.items() if name != f"{PACKAGE}energy_uj"}
    (tmp_path / PACKAGE / "energy_uj").mkdir(parents=True)  # unreadable, whoever asks
    _, reason = find_meter(lay_out(tmp_path, files))
    assert "energy_uj is not readable; it is root's" in reason


def test_joules_a_caption_with_and_without_what_idling_takes() -> None:
    found = describe("a meter", Reading(20.0, 10.0), Reading(100.0, 20.0), 10)
    assert found == {
        "meter": "a meter",
        "joules_per_caption": 10.0,
        "includes_idle": True,
        "joules_per_caption_above_idle": 6.0,
        "watts": 5.0,
        "idle_watts": 2.0,
        "idle_seconds": 10.0,
    }
