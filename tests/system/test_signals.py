"""A thread's signal stack outlives what a library does to it."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from clip_distill.system.signals import SignalStack, same_signal_stack, signal_stack

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has libraries that change it")


@linux
def test_it_is_given_back() -> None:
    before = signal_stack()
    other = ctypes.create_string_buffer(1 << 17)
    with same_signal_stack():
        stack = SignalStack(ctypes.addressof(other), 0, len(other))
        ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None)
        assert signal_stack() == (ctypes.addressof(other), 0, len(other))
    assert signal_stack() == before


@linux
def test_a_process_lives_on_when_openvino_goes_in_another_thread() -> None:
    pytest.importorskip("openvino")
    program = (
        "import faulthandler, gc, signal, subprocess, tempfile, threading, torch, openvino\n"
        "from clip_distill.runtimes.openvino import open_file\n"
        "faulthandler.enable()  # a signal stack, as pytest and Python's own -X faulthandler make\n"
        "signal.signal(signal.SIGCHLD, lambda *_: None)  # as torch's loaders do\n"
        "example = torch.zeros(2, 8)\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    path = folder + '/linear.xml'\n"
        "    openvino.save_model(openvino.convert_model(torch.nn.Linear(8, 8), example_input=example), path)\n"
        "    opened = [open_file(path)]\n"
        "thread = threading.Thread(target=lambda: (opened.clear(), gc.collect()))\n"
        "thread.start(); thread.join()\n"
        "subprocess.run(['true'], check=True)\n"
        "print('alive')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip().endswith("alive"), (done.returncode, done.stderr[-500:])
