import fcntl
import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from fl_i2moe.utils.machine import holding_interrupts, lock_holder, multiplies_bfloat16

# the file alone: the package takes its time to import
WORKER = f"""
import importlib.util, time
spec = importlib.util.spec_from_file_location("machine", {str(ROOT / "fl_i2moe" / "utils" / "machine.py")!r})
machine = importlib.util.module_from_spec(spec)
spec.loader.exec_module(machine)
machine.end_with_launcher(0.05)
print("working", flush=True)
time.sleep(60)
"""
LAUNCHER = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WORKER!r}])"


def test_a_worker_ends_when_its_launcher_was_killed():
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout.readline() == "working\n"
    with pytest.raises(subprocess.TimeoutExpired):
        launcher.wait(timeout=0.5)
    launcher.send_signal(signal.SIGKILL)
    output, _ = launcher.communicate(timeout=30)  # until the worker, too, has closed it
    assert output == ""


def test_an_interrupt_waits_for_the_end_of_the_block():
    def work():
        with holding_interrupts():
            signal.raise_signal(signal.SIGINT)
            done.append("all")

    done = []
    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with holding_interrupts():
        pass


@pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="the system does not tell who holds a lock")
def test_who_holds_a_lock(tmp_path):
    path = tmp_path / "lock"
    with path.open("w") as file:
        assert lock_holder(path) is None
        fcntl.flock(file, fcntl.LOCK_EX)
        assert lock_holder(path) == os.getpid()
    assert lock_holder(path) is None


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16 sha_ni", True),
        ("flags\t\t: fpu amx_bf16 amx_tile", True),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("flags\t\t: fpu avx2 avx512f\nmodel name\t: bf16", False),
        ("flags\t\t: fpu avx512_bf16x", False),
    ],
)
def test_who_multiplies_bfloat16(tmp_path, flags, expected):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\nbugs\t: none\n")
    assert multiplies_bfloat16(tmp_path / "cpuinfo") == expected
    assert multiplies_bfloat16(tmp_path / "elsewhere")
