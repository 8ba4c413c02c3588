#!/usr/bin/env python3
"""The daemon is killed again and again under four decoding engines: every engine's bits are those it
has alone. KVL_POINTS kills (25), KVL_SEED; the moments are random beyond it."""
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "e2e"))
import harness

ENGINES = 4
PROMPTS = 6
SECONDS_BETWEEN_KILLS = 0.8 if harness.SANITIZED else 0.1
POINTS = int(os.environ.get("KVL_POINTS", 25))
SEED = int(os.environ.get("KVL_SEED", time.time_ns() // 1000000))


class DecodeStorm(harness.Case):
    def words(self, number):
        prompt = self.prompt(700, f"p{number}.txt", SEED + number)
        return ["--prompt-file", prompt, "--max-tokens", "400", "--temperature", "2", "--seed",
                str(number), "--hash-logits", "--threads", "1"]

    def judge(self, number, process):
        out, err = process.communicate(timeout=120)
        if process.returncode != 0:
            time.sleep(0.02)
        with self.lock:
            self.count["runs"] += 1
            if process.returncode == 0:
                result = json.loads(out)
                self.count["wrong"] += result["logits_sha256"] != self.alone[number]
                self.count["lost_daemon"] += result["daemon_lost"]
                self.count["restored"] += harness.restored(result) > 0
            elif process.returncode == 1 and len(err.strip().splitlines()) == 1:
                self.count["refused"] += 1  # no daemon was there to begin with
            else:
                self.findings.append((process.returncode, err.decode(errors="replace")[-2000:]))

    def decode_on(self, chance):
        while not self.over.is_set():
            number = chance.randrange(PROMPTS)
            command = harness.decode_command("--connect", self.address, *self.words(number))
            try:
                self.judge(number, subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE))
            except Exception as error:  # a hang, or output that is none
                self.findings.append(error)

    def test_every_engine_has_the_bits_it_has_alone(self):
        print(f"storm=decode seed={SEED}", flush=True)
        sizes = dict(device="16M", host="16M", disk="64M", extra=["--persist-ms", "20"])
        self.alone = [harness.decode(*self.words(n), "--no-offload")["logits_sha256"]
                      for n in range(PROMPTS)]
        self.count = dict(runs=0, wrong=0, lost_daemon=0, refused=0, restored=0)
        self.findings, self.lock, self.over = [], threading.Lock(), threading.Event()
        daemon = self.start_daemon(**sizes)
        engines = [threading.Thread(target=self.decode_on, args=(random.Random(SEED + n),))
                   for n in range(ENGINES)]
        for engine in engines:
            engine.start()
        chance = random.Random(SEED)
        for _ in range(POINTS):
            time.sleep(chance.random() * 2 * SECONDS_BETWEEN_KILLS)
            self.assertEqual(self.stop(daemon, signal.SIGKILL), -signal.SIGKILL)
            daemon = self.start_daemon(**sizes)
        self.over.set()
        for engine in engines:
            engine.join()
        leases, bad = self.tool("status")["leases"], self.tool("verify")["bad"]
        findings = len(self.findings) + self.count["wrong"] + leases + bad
        print(f"storm=decode points={POINTS}", *(f"{k}={v}" for k, v in self.count.items()),
              f"findings={findings}", flush=True)
        self.assertEqual((findings, self.findings), (0, []))
        self.assertEqual(self.stop(daemon), 0)
        self.assertGreater(self.count["lost_daemon"], POINTS // 10)
        self.assertGreater(self.count["restored"], 0)


harness.main()
