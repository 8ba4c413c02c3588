#!/usr/bin/env python3
"""What an operator does to a daemon: reloading its configuration, its log, its supervisor, and many
short engines one after the other."""
import fcntl
import json
import os
import pathlib
import signal
import socket
import subprocess
import unittest

import harness
from harness import SANITIZED, Case

SHORT_RUNS = {"": 300, "thread": 25}.get(os.environ.get("KVLOFT_SANITIZED", ""), 60)


class Reload(Case):
    def setUp(self):
        super().setUp()
        self.config = self.folder / "kvloftd.json"
        self.write(persist_ms=200)
        self.daemon = self.start_daemon(extra=["--config", self.config])

    def write(self, **settings):
        self.config.write_text(json.dumps({name.replace("_", "-"): value
                                           for name, value in settings.items()}))

    def reload(self):
        """Sends SIGHUP and returns the log lines up to the one that says how it went."""
        before = len(self.log())
        self.daemon.send_signal(signal.SIGHUP)
        self.wait_until(lambda: " event=reload config=" in self.log()[before:] or
                        " event=reload_failed" in self.log()[before:])
        return self.log()[before:]

    def test_live_settings_change(self):
        self.write(persist_ms=70, log_level="debug", stop_seconds=3)
        said = self.reload()
        self.assertNotIn("WARN", said)
        self.assertEqual(self.tool("status")["persist_ms"], 70)
        self.write()
        self.reload()
        self.assertEqual(self.tool("status")["persist_ms"], 200)

    def test_a_log_level_changes(self):
        self.write(log_level="error")
        self.daemon.send_signal(signal.SIGHUP)
        self.wait_until(lambda: self.says_nothing())
        self.write(log_level="info")
        self.assertIn("event=reload ", self.reload())
        self.assertFalse(self.says_nothing())

    def says_nothing(self):
        before = self.log()
        self.tool("status")
        return self.log() == before

    def test_what_needs_a_restart_is_named_and_stays(self):
        self.write(persist_ms=90, host_bytes="1M", disk_io="buffered")
        # --host-bytes stands on the command line too and wins there: no difference.
        said = self.reload()
        self.assertIn('WARN event=reload_needs_restart options="disk-io"', said)
        self.assertEqual(self.tool("status")["persist_ms"], 90)

    def test_a_broken_file_changes_nothing(self):
        for text in ("{", "[]", '{"persist-ms": "soon"}', '{"no-such-option": 1}'):
            self.config.write_text(text)
            said = self.reload()
            self.assertIn("kvloftd: ", said)
            self.assertIn("the old settings stay", said)
            self.assertEqual(self.tool("status")["persist_ms"], 200)
        self.config.unlink()
        self.assertIn("the old settings stay", self.reload())
        self.assertEqual(self.stop(self.daemon), 0)

    def test_without_a_file_there_is_nothing_to_reload(self):
        self.stop(self.daemon)
        self.daemon = self.start_daemon()
        self.assertIn("there is no --config FILE", self.reload())
        self.tool("status")


class Supervised(Case):
    def test_systemd_is_told(self):
        for name in (str(self.folder / "notify"), "@kvloft-test-%d" % os.getpid()):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
                notify.bind(name.replace("@", "\0"))
                notify.settimeout(60)
                daemon = self.start_daemon(env={"NOTIFY_SOCKET": name})
                self.assertEqual(notify.recv(100), b"READY=1")
                self.assertEqual(self.stop(daemon), 0)
                self.assertEqual(notify.recv(100), b"STOPPING=1")

    def test_signals_that_come_together_are_one(self):
        """As a terminal, a shell and a supervisor send them: what was sealed is on disk after it."""
        daemon = self.start_daemon(extra=["--persist-ms", "60000"])
        prompt = ["--prompt-file", self.prompt(150), "--max-tokens", "1"]
        self.engine(*prompt)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            daemon.send_signal(number)
        self.assertEqual(daemon.wait(timeout=120), 0)
        self.assertTrue(self.log().endswith(" INFO event=stopped\n"), self.log()[-300:])
        daemon = self.start_daemon()
        self.assertGreater(self.engine(*prompt)["restored_tokens"]["disk"], 0)

    def spawn_until_it_catches_signals(self):
        daemon = self.spawn_daemon(extra=["--config", self.config])
        while not self.caught(daemon) & 1 << (signal.SIGHUP - 1):
            self.assertIsNone(daemon.poll())
        return daemon

    def caught(self, daemon):
        status = pathlib.Path(f"/proc/{daemon.pid}/status").read_text()
        return int(next(line for line in status.splitlines()
                        if line.startswith("SigCgt")).split()[1], 16)

    def test_a_signal_that_comes_before_it_serves_is_heard_then(self):
        self.config = self.folder / "kvloftd.json"
        self.config.write_text("{}")
        for _ in range(5):
            daemon = self.spawn_until_it_catches_signals()
            self.assertEqual(self.stop(daemon), 0)
            self.assertTrue(self.log().endswith(" INFO event=stopped\n"), self.log()[-300:])
            before = len(self.log())
            self.spawn_until_it_catches_signals().send_signal(signal.SIGHUP)
            self.wait_until(lambda: " event=reload config=" in self.log()[before:])
            self.assertEqual(self.stop(self.processes[-1]), 0)

    def test_an_empty_disk_shows_what_it_sets_aside(self):
        self.start_daemon()
        disk = self.tool("status")["tiers"]["disk"]
        self.assertEqual((disk["blocks"], disk["block_bytes"]), (0, 0))
        self.assertGreater(disk["reserved_bytes"], 0)
        self.assertLessEqual(disk["reserved_bytes"], disk["used_bytes"])
        self.engine("--prompt-file", self.prompt(150), "--max-tokens", "1")
        self.tool("flush")
        disk = self.tool("status")["tiers"]["disk"]
        self.assertGreaterEqual(disk["block_bytes"], disk["blocks"] * 4096)
        self.assertLessEqual(disk["block_bytes"] + disk["reserved_bytes"], disk["used_bytes"])

    @unittest.skipUnless(os.geteuid() == 0, "mounting needs root")
    def test_a_cap_above_what_the_file_system_has_is_said_at_the_start(self):
        mount = self.folder / "small"
        mount.mkdir()
        if harness.run("mount", "-t", "tmpfs", "-o", "size=32M", "none", mount,
                       check=False).returncode:
            self.skipTest("mount is refused here")
        try:
            self.disk = mount / "disk"
            for cap, is_said in (("64M", True), ("16M", False), ("64M", True)):
                daemon = self.start_daemon(disk=cap)
                warnings = " ".join(self.tool("status")["warnings"])
                self.assertEqual("its file system has room for" in warnings, is_said, warnings)
                self.assertEqual(self.stop(daemon), 0)
        finally:
            harness.run("umount", "-l", mount)

    def test_nobody_waits_for_whoever_reads_the_log(self):
        daemon = subprocess.Popen(self.daemon_command(), stderr=subprocess.PIPE)
        self.processes.append(daemon)
        log = daemon.stderr.fileno()
        fcntl.fcntl(log, fcntl.F_SETPIPE_SZ, 4096)
        self.tool("status", "--wait", "60")
        for _ in range(40):  # two lines each: more than the pipe holds
            self.tool("status")
        self.assertLessEqual(len(os.read(log, 1 << 20)), 4096)
        self.tool("status")
        self.assertIn(b"event=log_lines_dropped count=", os.read(log, 1 << 20))
        self.assertEqual(self.stop(daemon), 0)


class StoppedDaemon(Case):
    """SIGSTOP: alive, and silent. An engine waits for it once, and not long."""

    def test_decoding_goes_on(self):
        daemon = self.start_daemon()
        prompt = ["--prompt-file", self.prompt(60), "--max-tokens", "3500", "--hash-logits"]
        alone = harness.decode(*prompt, "--no-offload")
        engine = self.spawn(*prompt, "--session", "one")
        self.wait_until(lambda: self.tool("status")["sealed_blocks"] > 3)
        self.assertIsNone(engine.poll())
        daemon.send_signal(signal.SIGSTOP)
        result = harness.finish(engine, timeout=120)
        daemon.send_signal(signal.SIGCONT)
        self.assertEqual(result["logits_sha256"], alone["logits_sha256"])
        self.assertLess(result["decode_step_ms_max"], 8000)  # 250, and what a busy machine adds; not 10,000
        self.assertGreater(result["private_tokens"], 0)
        self.wait_for_leases(0)
        self.assertEqual(self.tool("verify")["bad"], 0)


class ShortRuns(Case):
    def fds(self):
        return len(os.listdir(f"/proc/{self.daemon.pid}/fd"))

    def footprint(self):
        """Once the last run's end was noticed."""
        self.wait_until(lambda: len(self.tool("status")["clients"]) == 1)
        status = pathlib.Path(f"/proc/{self.daemon.pid}/status").read_text()
        rss_kib = int(status.split("VmRSS:")[1].split()[0])
        report = self.tool("status")
        return rss_kib, len(report["clients"]), report["leases"], report["table_bytes"]

    def runs(self, count):
        for number in range(count):
            self.engine("--prompt", f"run {number % 7}", "--max-tokens", "2", timeout=60)

    def test_many_short_runs_leave_nothing_behind(self):
        self.daemon = self.start_daemon(device="16M", host="16M", disk="64M")
        self.runs(SHORT_RUNS // 5)  # what is allocated once
        rss_kib, clients, leases, table_bytes = self.footprint()
        fds = self.fds()
        self.runs(SHORT_RUNS)
        after = self.footprint()
        self.wait_until(lambda: self.fds() <= fds)  # a connection's end may lag behind
        self.assertEqual(after[1:], (clients, leases, table_bytes))
        self.assertEqual((clients, leases), (1, 0))
        if not SANITIZED:  # its allocator keeps what was freed
            self.assertLess(after[0] - rss_kib, 2048)
        self.assertEqual(self.stop(self.daemon), 0)


harness.main()
