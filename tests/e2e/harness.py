"""Runs the real programs for end-to-end tests: a daemon in a folder of its own, engines, the tool."""
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("KVLOFT_BIN", ROOT / "build/release/bin"))
TINY = ROOT / "tests/golden/data/tiny_f32.gguf"  # block of 64 tokens; context 4096
SANITIZED = bool(os.environ.get("KVLOFT_SANITIZED"))


def smollm2():
    """The demo model when scripts/fetch-model has brought it, else None."""
    base = os.environ.get("KVLOFT_MODEL_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "kvloft/models")
    found = sorted(pathlib.Path(base).rglob("*.gguf"))
    return found[0] if found else None


def needs_smollm2(test):
    if SANITIZED:
        return unittest.skip("too slow under a sanitizer")(test)
    return unittest.skipUnless(smollm2(), "the demo model is absent; run scripts/fetch-model")(test)


def run(*command, check=True, timeout=300, **options):
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=timeout,
                          **options)
    done.stderr = done.stderr.decode(errors="replace")
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}: status {done.returncode}\n"
                             f"{done.stderr[-4000:]}")
    return done


def decode_command(*words, model=TINY):
    return [str(word) for word in (BIN / "kvloft-decode", "--model", model, "--json", *words)]


def decode(*words, model=TINY, **options):
    return json.loads(run(*decode_command(*words, model=model), **options).stdout)


def start_decode(*words, model=TINY, **options):
    return subprocess.Popen(decode_command(*words, model=model), stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, **options)


def finish(process, timeout=300):
    out, err = process.communicate(timeout=timeout)
    if process.returncode != 0:
        raise AssertionError(f"status {process.returncode}\n{err.decode(errors='replace')[-4000:]}")
    return json.loads(out)


def restored(result):
    return sum(result["restored_tokens"].values())


class Case(unittest.TestCase):
    """A folder that goes away, and daemons that end with the test."""

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="kvloft-e2e-"))
        self.folder.chmod(0o700)
        self.address = f"ipc://{self.folder}/run/kvloft.sock"
        self.disk = self.folder / "disk"
        self.processes = []

    def tearDown(self):
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream:
                    stream.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def daemon_command(self, device="64M", host="64M", disk="256M", extra=()):
        return [str(word) for word in (
            BIN / "kvloftd", "--listen", self.address, "--device", "cpu", "--device-bytes", device,
            "--host-bytes", host, "--disk-path", self.disk, "--disk-bytes", disk, *extra)]

    def start_daemon(self, env=None, **sizes):
        daemon = self.spawn_daemon(env, **sizes)
        status = (BIN / "kvloft", "status", "--wait", "1", "--connect", self.address)
        self.wait_until(lambda: daemon.poll() is not None or
                        run(*status, check=False).returncode == 0, seconds=60)
        self.assertIsNone(daemon.poll(), f"the daemon ended:\n{self.log()[-2000:]}")
        return daemon

    def spawn_daemon(self, env=None, **sizes):
        log = open(self.folder / "kvloftd.log", "ab")
        daemon = subprocess.Popen(self.daemon_command(**sizes), stderr=log,
                                  env={**os.environ, **(env or {})})
        log.close()
        self.processes.append(daemon)
        return daemon

    def log(self):
        return (self.folder / "kvloftd.log").read_text()

    def stop(self, daemon, number=signal.SIGTERM):
        daemon.send_signal(number)
        return daemon.wait(timeout=120)

    def tool(self, *words, check=True):
        done = run(BIN / "kvloft", *words, "--connect", self.address, "--json", check=check)
        return json.loads(done.stdout) if done.stdout.strip() else done

    def engine(self, *words, **options):
        return decode("--connect", self.address, *words, **options)

    def spawn(self, *words, **options):
        process = start_decode("--connect", self.address, *words, **options)
        self.processes.append(process)
        return process

    def prompt(self, words, name="prompt.txt", seed=1):
        """A text of that many made-up words."""
        file = self.folder / name
        state = seed
        out = []
        for _ in range(words):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            out.append(["the", "moon", "a", "river", "of", "glass", "runs", "under", "old", "stone",
                        "and", "nobody", "knows", "why", "it", "sings"][state >> 60])
        file.write_text(" ".join(out))
        return file

    def wait_until(self, condition, seconds=120):
        deadline = time.monotonic() + seconds
        while not condition():
            self.assertLess(time.monotonic(), deadline, "waited too long")
            time.sleep(0.01)

    def wait_for_leases(self, count=0):
        """The end of a process is noticed behind."""
        self.wait_until(lambda: self.tool("status")["leases"] == count)


def main():
    if not (BIN / "kvloft-decode").exists():
        print(f"skipped: {BIN}/kvloft-decode is not built")
        sys.exit(77)
    unittest.main(verbosity=1)
