"""What a machine is and how it is doing, read from files laid out as machines have them."""

from pathlib import Path

import pytest
from machines import PI, PI_FIRMWARE, lay_out, pretend_vcgencmd

from captionlite.benchmarks.devices import cpu_limit, cpu_temperature_c, describe_machine, finish, read_state


@pytest.fixture(autouse=True)
def no_firmware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


def test_a_raspberry_pi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = lay_out(tmp_path / "pi", PI)
    pretend_vcgencmd(tmp_path / "bin", monkeypatch, PI_FIRMWARE)
    found = describe_machine(root)
    assert found["governor"] == ["ondemand"] * 4
    assert found["frequencies_mhz"][2] == {"current": 1700.0, "min": 600.0, "max": 1800.0}
    assert found["temperature_c"] == 48.312
    assert found["thermal_zones_c"] == {"gpu-thermal": 61.0, "cpu-thermal": 48.312}
    assert found["throttled"] == {"flags": "0x50004", "now": ["throttled"]}  # and under-voltage before
    assert found["memory_total_bytes"] == 3884380 * 1024
    assert found["load_average"] == {"before": [0.52, 0.58, 0.59], "after": None}
    assert read_state(root).frequency_mhz == 1650.0
    lay_out(root, {"proc/loadavg": "1.90 0.70 0.60 2/389 1", "sys/class/thermal/thermal_zone1/temp": "80000"})
    after = finish(found, root)
    assert after["load_average"] == {"before": [0.52, 0.58, 0.59], "after": [1.9, 0.7, 0.6]}
    assert (after["temperature_c"], after["temperature_after_c"]) == (48.312, 80.0)
    assert after["throttled_after"] == "0x50004"


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    root = lay_out(tmp_path, {"sys/devices/system/cpu/cpu0/topology/core_id": "0", "proc/meminfo": "no such line"})
    found = describe_machine(root)
    assert found["governor"] == [None]
    assert found["frequencies_mhz"] == [{"current": None, "min": None, "max": None}]
    unknown = ("temperature_c", "throttled", "memory_total_bytes", "container", "cpu_limit")
    assert {name: found[name] for name in unknown} == dict.fromkeys(unknown)
    assert found["python"]  # what the environment tells is there as well
    state = read_state(root)
    assert (state.temperature_c, state.frequency_mhz, state.throttled) == (None, None, None)


def test_files_that_hold_no_numbers_are_unknown(tmp_path: Path) -> None:
    files = {name: "<unknown>" for name in PI if "temp" in name or "freq" in name}
    found = describe_machine(lay_out(tmp_path, files))
    assert found["temperature_c"] is None
    assert found["frequencies_mhz"][0] == {"current": None, "min": None, "max": None}


def test_the_temperature_is_the_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its zone, else its sensor chip, else the firmware's word, else the hottest zone."""
    other = {"sys/class/thermal/thermal_zone0/type": "acpitz", "sys/class/thermal/thermal_zone0/temp": "27800"}
    root = lay_out(tmp_path / "root", other)
    assert cpu_temperature_c(root) == 27.8
    pretend_vcgencmd(tmp_path / "bin", monkeypatch, PI_FIRMWARE)
    assert cpu_temperature_c(root) == 47.9
    lay_out(root, {"sys/class/hwmon/hwmon0/name": "nvme", "sys/class/hwmon/hwmon0/temp1_input": "70000"})
    lay_out(root, {"sys/class/hwmon/hwmon1/name": "k10temp", "sys/class/hwmon/hwmon1/temp1_input": "55125"})
    assert cpu_temperature_c(root) == 55.125
    lay_out(root, {"sys/class/thermal/thermal_zone1/type": "x86_pkg_temp"})
    lay_out(root, {"sys/class/thermal/thermal_zone1/temp": "61000"})
    assert cpu_temperature_c(root) == 61.0


def test_a_firmware_that_fails_or_hangs_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_vcgencmd(tmp_path / "bin", monkeypatch, {})
    assert read_state(tmp_path).throttled is None
    (tmp_path / "bin" / "vcgencmd").write_text("#!/bin/sh\nexec sleep 30\n")
    monkeypatch.setattr("captionlite.benchmarks.devices.VCGENCMD_TIMEOUT_S", 0.05)
    assert read_state(tmp_path).throttled is None


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "max 1", "sys/fs/cgroup/a/cpu.max": "5 10"}, 0.5),
        ({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/cpu.max": "30 10", "sys/fs/cgroup/cpu.max": "20 10"}, 2.0),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n2:cpu,cpuacct:/docker/1",
                "sys/fs/cgroup/cpu/docker/1/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu/docker/1/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            2.0,
        ),
        ({"proc/self/cgroup": "nonsense"}, None),
        ({}, None),
    ],
)
def test_cores_that_a_control_group_leaves(tmp_path: Path, files: dict[str, str], limit: float | None) -> None:
    assert cpu_limit(lay_out(tmp_path, files)) == limit


def test_containers(tmp_path: Path) -> None:
    assert describe_machine(lay_out(tmp_path / "a", {".dockerenv": ""}))["container"] == "docker"
    assert describe_machine(lay_out(tmp_path / "b", {"run/.containerenv": ""}))["container"] == "podman"
    assert describe_machine(lay_out(tmp_path / "c", {"proc/1/cgroup": "1:cpu:/kubepods/x"}))["container"] == "kubepods"
