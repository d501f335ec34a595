"""Parsers of NPU tools, on outputs published by users."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ascend_cpt.cluster.node.npu_tools import (
    Chip,
    NpuProcess,
    find_cann_version,
    is_compatible,
    parse_npu_smi,
    parse_version_file,
    query_npu_smi,
    shorten_version,
)

# github.com/vllm-project/vllm-ascend/issues/4621: one 910B2C, and the version file of its CANN
SMI_910B = """\
+------------------------------------------------------------------------------------------------+
| npu-smi 25.0.rc1.1               Version: 25.0.rc1.1                                           |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B2C              | OK            | 88.3        34                0    / 0             |
| 0                         | 0000:5A:00.0  | 0           0    / 0          3406 / 65536         |
+===========================+===============+====================================================+
"""
CANN_83 = """\
package_name=Ascend-cann-toolkit
version=8.3.RC2
innerversion=V100R001C23SPC002B210
compatible_version=[V100R001C15],[V100R001C18],[V100R001C19],[V100R001C20],[V100R001C21],[V100R001C23]
arch=x86_64
os=linux
path=/usr/local/Ascend/ascend-toolkit/8.3.RC2/x86_64-linux
"""
# github.com/nyakang/nyaterm/issues/268: two chips on a card, both held by a process
SMI_A3 = """\
+===========================+===============+======================================================================+
| 7     Ascend910           | OK            | 172.0                53                      0    / 0                |
| 0     14                  | 0000:81:00.0  | 0                    0    / 0                15503/ 65536            |
+------------------------------------------------------------------------------------------------------------------+
| 7     Ascend910           | OK            | -                    52                      0    / 0                |
| 1     15                  | 0000:83:00.0  | 0                    0    / 0                15242/ 65536            |
+===========================+===============+======================================================================+
+---------------------------+---------------+----------------------------------------------------------------------+
| NPU     Chip              | Process id    | Process name       | Process memory(MB)    | Process id in container |
+===========================+===============+======================================================================+
| 0       0                 | 692318        | python3            | 12417                 | NA                      |
"""
# github.com/Project-HAMi/HAMi-WebUI/issues/47: with the bus ids hidden
SMI_HIDDEN_BUS = """\
| npu-smi 25.2.0                   Version: 25.2.0                                               |
| 0     910B4-1             | OK            | 91.3        33                0    / 0             |
| 0                         | 0000:xx:00.0  | 0           0    / 0          3197 / 65536         |
+===========================+===============+====================================================+
| 1     910B4-1             | OK            | 88.1        32                0    / 0             |
| 0                         | 0000:xx:00.0  | 0           0    / 0          3197 / 65536         |
"""
# As printed below the chips when nothing runs (in several of these reports).
SMI_NO_PROCESSES = """\
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| No running processes found in NPU 7                                                            |
"""
# Found by searching public code for "ascendhal_version": a driver's version.info
DRIVER_241 = """\
Version=24.1.0
ascendhal_version=7.35.23
aicpu_version=1.0
tdt_version=1.0
log_version=1.0
prof_version=2.0
dvppkernels_version=1.1
tsfw_version=1.0
Innerversion=V100R001C19SPC002B226
compatible_version=[V100R001C13],[V100R001C15],[V100R001C17],[V100R001C18],[V100R001C19]
compatible_version_fw=[7.0.0,7.6.99]
"""


def test_a_card_of_one_chip() -> None:
    status = parse_npu_smi(SMI_910B + SMI_NO_PROCESSES)
    chip = Chip(card=0, number=0, name="910B2C", health="OK", used_hbm_mb=3406, total_hbm_mb=65536)
    assert (status.version, status.chips, status.processes) == ("25.0.rc1.1", (chip,), ())


def test_cards_of_two_chips_and_a_process() -> None:
    status = parse_npu_smi(SMI_A3)
    assert [(chip.card, chip.number, chip.used_hbm_mb) for chip in status.chips] == [(7, 0, 15503), (7, 1, 15242)]
    assert status.processes == (NpuProcess(card=0, number=0, pid=692318, name="python3", memory_mb=12417),)


def test_a_hidden_bus_and_an_unhealthy_chip() -> None:
    status = parse_npu_smi(SMI_HIDDEN_BUS.replace("OK            | 88.1", "Alarm         | 88.1"))
    assert [chip.health for chip in status.chips] == ["OK", "Alarm"]


def test_output_without_a_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="no chip"):
        parse_npu_smi("dcmi module initialize failed. ret is -8005\n")


def test_a_failing_or_hanging_npu_smi_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "npu-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(OSError):
        query_npu_smi(5)
    # github.com: output for a user without access to the driver
    program.write_text("#!/bin/sh\necho 'dcmi module initialize failed. ret is -8005'\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(OSError, match="exit code 1: dcmi module initialize failed"):
        query_npu_smi(5)
    program.write_text("#!/bin/sh\nexec sleep 5\n")
    with pytest.raises(TimeoutError, match=r"within 0\.2 s"):
        query_npu_smi(0.2)
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{SMI_910B}END\n")
    assert len(query_npu_smi(5).chips) == 1


def test_version_files(tmp_path: Path) -> None:
    assert find_cann_version(tmp_path) is None
    (tmp_path / "compiler").mkdir()
    (tmp_path / "compiler/version.info").write_text("Version=8.5.0\n")
    assert find_cann_version(tmp_path) == {"version": "8.5.0"}
    (tmp_path / "x86_64-linux").mkdir()
    (tmp_path / "x86_64-linux/ascend_toolkit_install.info").write_text(CANN_83)
    found = find_cann_version(tmp_path)
    assert found
    assert shorten_version(found["version"]) == "8.3"


def test_driver_and_toolkit_compatibility() -> None:
    toolkit, driver = parse_version_file(CANN_83), parse_version_file(DRIVER_241)
    assert is_compatible(toolkit, driver) is True
    assert is_compatible(toolkit, driver | {"innerversion": "V100R001C13SPC001"}) is False
    assert is_compatible({"version": "8.5"}, driver) is None
    assert is_compatible(toolkit, {"version": "1"}) is None


@pytest.mark.npu
def test_this_machines_npu_smi() -> None:
    status = query_npu_smi(10)
    devices = len(list(Path("/dev").glob("davinci[0-9]*")))
    assert len(status.chips) >= devices > 0
    assert subprocess.run(["npu-smi", "info"], check=False, capture_output=True).returncode == 0
