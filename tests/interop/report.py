"""How the flows went: a line for each as it ends, and the count."""

import concurrent.futures
import os
import pathlib
import shutil
import tempfile
import threading
import time
import traceback

import client

# Files whose frames do not say at which step a flow failed.
NO_STEPS = {"client.py", "report.py", "servers.py", "gate.py"}


class Report:
    """Prints a line for each finished flow, and counts."""

    def __init__(self):
        self._lock = threading.Lock()
        self.passed = 0
        self.failures = []

    def line(self, ok, name, seconds, evidence=""):
        with self._lock:
            print(f"{'ok  ' if ok else 'FAIL'} {name}  ({seconds:.1f} s)", flush=True)
            if ok:
                self.passed += 1
            else:
                self.failures.append((name, evidence))
                print("     " + evidence.replace("\n", "\n     "), flush=True)

    def run(self, name, action, before=0.0):
        """Does it, and tells how it went. `before`: seconds that it took already."""
        begun = time.monotonic() - before
        try:
            action()
        except (client.Unmet, client.Refused, TimeoutError) as error:
            frames = traceback.extract_tb(error.__traceback__)
            told = [frame for frame in frames if pathlib.Path(frame.filename).name not in NO_STEPS]
            steps = " > ".join(f"{frame.name}:{frame.lineno}" for frame in told)
            self.line(False, name, time.monotonic() - begun, f"{error}\nat {steps}")
        except Exception:  # noqa: BLE001 - a flow that breaks in an unforeseen way is a failed flow
            self.line(False, name, time.monotonic() - begun, traceback.format_exc())
        else:
            self.line(True, name, time.monotonic() - begun)


    def end(self, begun, more):
        """Prints what failed, how long it took since `begun` with what `more` there is to say, and the count. Returns the
        exit status."""
        for name, _ in self.failures:
            print(f"FAIL {name}")
        print(f"     {time.monotonic() - begun:.0f} s in all; {more}")
        print(f"{self.passed} passed, {len(self.failures)} failed")
        return 1 if self.failures or not self.passed else 0

    def put_away(self, scratch, keep):
        """Deletes the servers' folders, unless something failed or they are to be kept."""
        if self.failures or keep:
            kept = shutil.move(str(scratch), tempfile.gettempdir())
            print(f"     the servers' folders are kept in {kept}")
        else:
            shutil.rmtree(scratch, ignore_errors=True)


def together(jobs, report, work):
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for name, action in work:
            pool.submit(report.run, name, action)


def folder_in_memory():
    """Where files are kept in memory, if there is such a place with room enough: Synapse waits for the disk at every
    step, and nothing here is about power cuts. None: wherever temporary files go."""
    place = pathlib.Path("/dev/shm")
    try:
        return place if shutil.disk_usage(place).free > 2 << 30 and os.access(place, os.W_OK) else None
    except OSError:
        return None
