"""Jupyter kernels that are forked from a process which has imported the heavy packages: one start a worker, not one a chapter.

A kernel is a process of its own as before, with its own folder, environment and random state, and modules of mc are
imported by each anew. This file is the program of the parent too: `python kernels.py` takes one kernel a line.
"""
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from importlib.metadata import EntryPoint

import nbval.kernel
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

HEAVY = ("torch", "torch._dynamo", "numpy", "pandas", "scipy.stats", "plotly.graph_objects", "plotly.io", "anywidget", "ipywidgets", "IPython.display",
         "ipykernel.kernelapp", "ipykernel.ipkernel", "pydantic", "typer", "safetensors.torch", "tqdm", "nbformat", "jsonschema", "narwhals", "PIL.Image")


class Process:
    "What jupyter_client asks of a process, for one that somebody else has started."
    stdin = stdout = stderr = returncode = None

    def __init__(self, pid):
        self.pid = pid

    def send_signal(self, number):
        os.kill(self.pid, number)

    def poll(self):
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            self.returncode = 0
        return self.returncode

    def wait(self):
        while self.poll() is None:
            time.sleep(0.01)
        return self.returncode

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def terminate(self):
        self.send_signal(signal.SIGTERM)


class Parent:
    "The process that kernels are forked from; it ends with the one that made it."
    process = None

    @classmethod
    def fork(cls, arguments, folder, env):
        if cls.process is None or cls.process.poll() is not None:
            cls.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/")
        print(json.dumps([arguments, os.path.abspath(folder), env]), file=cls.process.stdin, flush=True)
        return Process(int(cls.process.stdout.readline()))


class Forked(LocalProvisioner):
    async def launch_kernel(self, cmd, **kwargs):
        if cmd[1:3] != ["-m", "ipykernel_launcher"]:
            return await super().launch_kernel(cmd, **kwargs)
        self.process = Parent.fork(cmd[3:], kwargs.get("cwd") or os.getcwd(), kwargs.get("env") or dict(os.environ))
        self.pid = self.pgid = self.process.pid
        return self.connection_info


def use():
    "The kernels of nbval are forked from now on; those that other tests start are not."
    manager = nbval.kernel.NbvalKernelspecManager    # it calls super by its global name: no subclass can take its place
    plain = manager.get_kernel_spec

    def get_kernel_spec(self, kernel_name):
        spec = plain(self, kernel_name)
        spec.metadata = spec.metadata | {"kernel_provisioner": {"provisioner_name": "forked"}}
        return spec

    manager.get_kernel_spec = get_kernel_spec
    factory = KernelProvisionerFactory.instance()
    factory.provisioners["forked"] = EntryPoint("forked", f"{__name__}:Forked", factory.GROUP_NAME)


def be_kernel(arguments, folder, env):
    "In the forked process: what `python -m ipykernel_launcher` does."
    import numpy as np
    import pandas as pd
    from ipykernel.kernelapp import launch_new_instance

    os.setsid()
    os.environ.clear()
    os.environ.update(env, JPY_PARENT_PID=str(os.getppid()))
    os.chdir(folder)
    del sys.path[0]    # the folder of this file
    sys.argv = ["ipykernel_launcher", *arguments]
    random.seed()
    np.random.seed()
    pd.set_option("display.max_columns", 20)    # what pandas takes where it is first imported in a kernel
    launch_new_instance()


def serve():
    for name in HEAVY:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)    # whoever ends is gone, and `poll` sees it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    told, nowhere = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for line in iter(sys.stdin.readline, ""):
        if not (pid := os.fork()):
            for number in (signal.SIGCHLD, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else signal.default_int_handler)
            for i in range(3):
                os.dup2(nowhere, i)
            os.close(told)
            be_kernel(*json.loads(line))
            os._exit(0)
        os.write(told, f"{pid}\n".encode())


if __name__ == "__main__":
    serve()
