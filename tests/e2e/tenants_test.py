#!/usr/bin/env python3
"""Tenants on one daemon: caches, sessions and status apart; quotas; secrets; bad tenants files."""
import concurrent.futures
import json
import os
import subprocess
import threading

import harness
from harness import BIN, Case, decode, restored, run

SECRETS = {"acme": "acme's secret, 16 or more", "blue": "blue's secret, 16 or more",
           "ops": "the operator's own secret"}


class Tenants(Case):
    def write_tenants(self, **quotas):
        entries = [{"name": name, "secret": secret, **quotas.get(name, {})}
                   for name, secret in SECRETS.items()]
        entries[2]["operator"] = True
        file = self.folder / "tenants.json"
        file.write_text(json.dumps(entries))
        file.chmod(0o600)
        return file

    def serve(self, device="64M", host="16M", disk="256M", **quotas):
        return self.start_daemon_as(
            self.daemon_command(device=device, host=host, disk=disk,
                                extra=("--tenants", self.write_tenants(**quotas))))

    def start_daemon_as(self, command):
        with open(self.folder / "kvloftd.log", "ab") as log:
            daemon = subprocess.Popen(command, stderr=log)
        self.processes.append(daemon)
        self.ask("ops", "status", "--wait", "60")
        return daemon

    def env(self, name):
        out = {key: value for key, value in os.environ.items() if not key.startswith("KVLOFT_TE")}
        if name:
            out.update(KVLOFT_TENANT=name, KVLOFT_SECRET=SECRETS.get(name, "unknown, but long"))
        return out

    def ask(self, name, *words, check=True):
        done = run(BIN / "kvloft", *words, "--connect", self.address, "--json", check=check,
                   env=self.env(name))
        return json.loads(done.stdout) if done.stdout.strip() else done

    def engine_of(self, name, words, *more):
        return decode("--connect", self.address, *words, *more, env=self.env(name))

    def words(self, seed=1):
        return ["--prompt-file", self.prompt(300, f"p{seed}.txt", seed), "--max-tokens", "4",
                "--hash-logits"]

    def own(self, name):
        """What `status` tells a tenant of itself."""
        (report,) = self.ask(name, "status")["tenants"]
        self.assertEqual(report["name"], name)
        return report

    def test_caches_sessions_and_status_are_apart(self):
        daemon = self.serve()
        first = self.engine_of("acme", self.words(), "--session", "talk")
        self.assertEqual(restored(first), 0)
        other = self.engine_of("blue", self.words(), "--session", "talk")
        self.assertEqual(restored(other), 0)  # the same model, prompt and session name
        self.assertEqual(other["logits_sha256"], first["logits_sha256"])
        self.assertEqual(restored(self.engine_of("acme", self.words())),
                         first["prompt_tokens"] // 64 * 64)

        listed = {name: self.ask(name, "ls") for name in SECRETS}
        acme, blue = ({block["key"] for block in listed[name]["blocks"]}
                      for name in ("acme", "blue"))
        self.assertEqual(acme, blue)  # each sees the keys that it made itself
        self.assertEqual(len(listed["ops"]["blocks"]), 2 * len(acme))
        inside = {block["key"] for block in listed["ops"]["blocks"]}
        self.assertFalse(acme & inside)

        sessions = {name: [session["name"] for session in self.ask(name, "session", "ls")["sessions"]]
                    for name in SECRETS}
        self.assertEqual(sessions["acme"], ["talk"])
        self.assertEqual(sessions["blue"], ["talk"])
        self.assertEqual(sessions["ops"], ["acme/talk", "blue/talk"])
        shown = self.ask("acme", "session", "show", "talk")
        self.assertGreaterEqual(shown["cached_blocks"], first["prompt_tokens"] // 64)

        status = self.ask("acme", "status")
        self.assertEqual([client["name"] for client in status["clients"]], ["kvloft"])
        self.assertEqual(status["blocks"], len(acme))
        self.assertGreater(status["tiers"]["device"]["hits"], 0)
        self.assertEqual(self.ask("blue", "status")["tiers"]["device"]["hits"], 0)
        names = [tenant["name"] for tenant in self.ask("ops", "status")["tenants"]]
        self.assertEqual(names, ["", "acme", "blue"])

        # A pin by the key that the tenant knows; the other's same key is another block.
        key = sorted(acme)[0]
        self.assertGreater(self.ask("acme", "pin", key)["blocks"], 0)
        self.assertGreater(self.ask("acme", "status")["pins"], 0)
        self.assertEqual(self.ask("blue", "status")["pins"], 0)
        self.assertEqual(self.ask("blue", "verify")["blocks"], len(blue))

        # All of it survives a restart, also who owns what.
        self.ask("acme", "flush")
        self.stop(daemon)
        self.serve()
        again = self.engine_of("blue", self.words())
        self.assertEqual(again["restored_tokens"]["disk"], first["prompt_tokens"] // 64 * 64)
        self.assertEqual(again["logits_sha256"], first["logits_sha256"])
        self.assertGreater(self.ask("acme", "status")["pins"], 0)

        # Clear: a tenant its own only, an operator by name, sessions included.
        self.ask("acme", "clear", "--all")
        self.assertEqual(self.own("acme")["tiers"]["disk"]["used_bytes"], 0)
        self.assertEqual(len(self.ask("blue", "ls")["blocks"]), len(blue))
        refused = self.ask("acme", "clear", "--tenant", "blue", check=False)
        self.assertIn("no tenant 'blue' that you may clear", refused.stderr)
        self.assertGreaterEqual(self.ask("ops", "clear", "--tenant", "blue")["cleared_blocks"],
                                len(blue))
        self.assertEqual(self.ask("blue", "ls")["blocks"], [])
        self.assertEqual(self.ask("ops", "session", "ls")["sessions"][0]["name"], "acme/talk")
        self.assertEqual(len(self.ask("ops", "session", "ls")["sessions"]), 1)

    def test_quotas_hold_under_load(self):
        quota = {"device_bytes": 512 << 10, "host_bytes": "128K", "disk_bytes": "512K"}
        self.serve(device="32M", acme=quota)
        kept = self.engine_of("blue", self.words(99))
        limits = {"device": 512 << 10, "host": 128 << 10, "disk": 512 << 10}
        stop, highest = threading.Event(), dict.fromkeys(limits, 0)

        def watch():
            over = False
            while not over:
                over = stop.is_set()  # then once more
                tiers = self.own("acme")["tiers"]
                for tier in highest:
                    highest[tier] = max(highest[tier], tiers[tier]["used_bytes"])

        prompts = [self.words(seed) for seed in range(4)]
        alone = [decode(*prompt, "--no-offload")["logits_sha256"] for prompt in prompts]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            watcher = pool.submit(watch)
            try:
                runs = [pool.submit(self.engine_of, "acme", prompts[i % 4]) for i in range(12)]
                for i, result in enumerate(runs):
                    self.assertEqual(result.result()["logits_sha256"], alone[i % 4])
                self.ask("acme", "flush")  # a slow disk has seen nothing of them before
            finally:
                stop.set()
            watcher.result()
        for tier, limit in limits.items():
            self.assertLessEqual(highest[tier], limit, tier)
            self.assertGreater(highest[tier], limit // 2, tier)
            self.assertEqual(self.own("acme")["tiers"][tier]["quota_bytes"], limit)
        for tier in ("device", "disk"):
            self.assertGreater(self.own("acme")["tiers"][tier]["evicted_blocks"], 0)
        again = self.engine_of("blue", self.words(99))  # nobody else paid for it
        self.assertEqual(restored(again), kept["prompt_tokens"] // 64 * 64)

    def fails(self, *command, env, status=1):
        done = run(*command, check=False, env=env)
        self.assertEqual(done.returncode, status)
        self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)
        for secret in SECRETS.values():
            self.assertNotIn(secret, done.stderr)
        return done.stderr

    def test_secrets(self):
        self.serve()
        tool = (BIN / "kvloft", "status", "--connect", self.address)
        wrong = dict(self.env("acme"), KVLOFT_SECRET="not acme's secret at all")
        for env in (wrong, self.env("stranger")):
            self.assertIn("knows no tenant", self.fails(*tool, env=env))
        self.assertIn("named tenants only", self.fails(*tool, env=self.env("")))
        short = dict(self.env("acme"), KVLOFT_SECRET="short")
        self.assertIn("16 to 4096 bytes", self.fails(*tool, env=short))
        lacking = self.env("acme")
        del lacking["KVLOFT_SECRET"]
        self.assertIn("needs its secret", self.fails(*tool, env=lacking))
        file = self.folder / "secret"
        file.write_text(SECRETS["acme"] + "\n")  # as an editor leaves it
        file.chmod(0o644)
        words = (*tool, "--json", "--tenant", "acme", "--secret-file", file)
        self.assertIn("chmod 600", self.fails(*words, env=self.env("")))
        file.chmod(0o600)
        status = json.loads(run(*words, env=self.env("")).stdout)
        self.assertEqual([tenant["name"] for tenant in status["tenants"]], ["acme"])
        result = decode("--connect", self.address, "--tenant", "acme", "--secret-file", file,
                        *self.words(), env=self.env(""))
        self.assertGreater(result["prompt_tokens"], 0)
        self.assertIn("knows no tenant", self.fails(
            *harness.decode_command("--connect", self.address, *self.words()), env=wrong))
        log = (self.folder / "kvloftd.log").read_text()
        for secret in SECRETS.values():
            self.assertNotIn(secret, log)

    def test_a_daemon_without_tenants_knows_none(self):
        self.start_daemon()
        self.assertIn("knows no tenant 'acme'", self.fails(
            BIN / "kvloft", "status", "--connect", self.address, env=self.env("acme")))

    def test_bad_tenants_files(self):
        good = {"name": "acme", "secret": SECRETS["acme"]}
        file = self.folder / "bad.json"
        command = self.daemon_command(extra=("--tenants", file))
        self.assertIn("No such file", self.fails(*command, env=self.env(""), status=2))
        cases = [
            ("{", "line 1"), ("{}", "not a JSON list"), ("[]", "not a JSON list"),
            ([3], "entry 1 has no \"name\""), ([good, good], "\"name\" is there twice"),
            ([{"name": "acme"}], "\"secret_file\" is needed"),
            ([dict(good, secret_file="x")], "one of the two"),
            ([dict(good, secret="short")], "16 to 4096 bytes"),
            ([dict(good, name="a/b")], "letters, digits"),
            ([dict(good, name="x" * 64)], "1 to 63"),
            ([dict(good, disk_bytes="many")], "\"disk_bytes\" is no size"),
            ([dict(good, disk_bytes=0)], "\"disk_bytes\" is no size"),
            ([dict(good, operator=True, host_bytes="1M")], "an operator stores nothing"),
            ([dict(good, operator="yes")], "neither true nor false"),
            ([dict(good, quota=1)], "\"quota\" is no member"),
            ([{"name": "", "secret": SECRETS["acme"]}], "not for clients without a tenant"),
            ([{"name": "acme", "secret_file": "/nonexistent"}], "/nonexistent: No such file"),
        ]
        for content, message in cases:
            file.write_text(content if isinstance(content, str) else json.dumps(content))
            file.chmod(0o600)
            error = self.fails(*command, env=self.env(""), status=2)
            self.assertIn(message, error)
            self.assertIn("bad.json", error)
        file.chmod(0o640)
        self.assertIn("chmod 600", self.fails(*command, env=self.env(""), status=2))


if __name__ == "__main__":
    harness.main()
