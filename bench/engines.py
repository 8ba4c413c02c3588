"""kvloft-decode and its opponents for bench/engine_vs_llamacpp: each run is a process of its own that
prints one JSON object, so that loading, speed and memory are measured alike.

This module and its caller import nothing large: Linux counts what a parent holds at the fork as its
child's peak, and the peaks are measured here."""
import json
import os
import subprocess
import sys
import tempfile

BENCH = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(BENCH)
FLASH = ("on", "off")


class RunFailed(Exception):
    pass


def run(command, env=None):
    """-> (what it printed, its peak of resident memory in bytes)"""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=env)
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        if process.returncode != 0:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines()
            raise RunFailed(f"{' '.join(command)}: exit status {process.returncode}: "
                            + (said[-1] if said else ""))
    return printed.decode(), 1024 * usage.ru_maxrss


def run_json(command, env=None):
    return json.loads(run(command, env)[0].splitlines()[-1])


def last_line_of(*command):
    """Of a script that may have much to say meanwhile, on stderr."""
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return done.stdout.decode().splitlines()[-1]


def drop_from_page_cache(path):
    """Writes the file's pages out and lets the system forget them."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


class Settings:
    """What both run with."""

    def __init__(self, prompt, threads, context, new_tokens):
        self.prompt = prompt
        self.threads = threads
        self.context = context
        self.new_tokens = new_tokens

    def options(self):
        return ["--ctx", str(self.context), "--threads", str(self.threads)]


def figures(report, peak_bytes):
    """What a run that prefilled and decoded comes down to."""
    return {"prefill": 1000 * report["prompt_tokens"] / report["prefill_ms"],
            "decode": report.get("decode_tokens_per_s"), "load": report["load_ms"],
            "memory": peak_bytes / 2**20, "tokens": report["prompt_tokens"], "report": report}


class Kvloft:
    def __init__(self, program, settings):
        self.program = program
        self.settings = settings

    def decode(self, model, tokens, new_tokens, *options, env=None):
        command = [self.program, "--model", model, "--prompt-file", self.settings.prompt,
                   "--prompt-tokens", str(tokens), "--max-tokens", str(new_tokens),
                   "--temperature", "0", "--kv-dtype", "f16", *self.settings.options(),
                   *(options or ("--no-offload",)), "--json"]
        printed, peak_bytes = run(command, env)
        return figures(json.loads(printed), peak_bytes)

    def token_ids(self, model, tokens):
        return run_json([self.program, "--model", model, "--prompt-file", self.settings.prompt,
                         "--prompt-tokens", str(tokens), "--tokenize", "--json"])["tokens"]

    def with_daemon(self, model, tokens, folder, flush=False):
        """A daemon that starts on the folder, serves one run and dies by SIGKILL."""
        programs = os.path.dirname(os.path.abspath(self.program))
        address = f"ipc://{os.path.abspath(folder)}/run/kvloft.sock"
        daemon = subprocess.Popen(
            [os.path.join(programs, "kvloftd"), "--listen", address, "--device-bytes", "512M",
             "--host-bytes", "512M", "--disk-path", os.path.join(folder, "disk"), "--disk-bytes",
             "2G"], stderr=subprocess.DEVNULL)
        tool = os.path.join(programs, "kvloft")
        try:
            run([tool, "status", "--wait", "20", "--connect", address])
            result = self.decode(model, tokens, 1, "--connect", address)
            if flush:
                run([tool, "flush", "--connect", address])
        finally:
            daemon.kill()
            daemon.wait()
        return result["report"]


class Llama:
    """llama.cpp, in each attention mode (FLASH)."""

    def __init__(self, python, settings):
        self.program = [python, os.path.join(BENCH, "llama_decode.py")]
        self.settings = settings

    def command(self, name, model, tokens, flash, *options):
        return [*self.program, name, "--model", model, "--prompt-tokens", str(tokens), "--flash",
                flash, *self.settings.options(), *options]

    def decode(self, model, tokens, new_tokens, flash, *options):
        report = run_json(self.command("decode", model, tokens, flash, "--prompt-file",
                                       self.settings.prompt, "--max-tokens", str(new_tokens),
                                       *options))
        return figures(report, report["peak_bytes"])

    def restore_ms(self, model, tokens, state):
        report = run_json(self.command("restore", model, tokens, "on", "--state", state))
        if report["restored_tokens"] != tokens:
            raise RunFailed(f"llama.cpp restored {report['restored_tokens']} tokens, not {tokens}")
        return report["restore_ms"]

    def quantized(self, model, file_type, folder):
        """-> the path of the same model with other weights, made once."""
        stem = os.path.basename(model)[:-len(".gguf")]
        path = os.path.join(folder, f"{stem}-to-{file_type}.gguf")
        if not os.path.exists(path):
            run([*self.program, "quantize", "--model", model, "--type", file_type, "--out", path,
                 "--threads", str(self.settings.threads)])
        return path

    def version(self):
        return run_json([*self.program, "version"])


class Torch:
    """PyTorch and transformers, in f32; for prefill only."""

    PACKAGES = ("torch==2.13.0", "transformers==5.19.0", "accelerate==1.15.0", "gguf==0.19.0",
                "numpy==2.4.6")

    def __init__(self, cache, settings):
        self.python = self.set_up(os.path.join(cache, "torch-venv"))
        self.settings = settings

    def set_up(self, folder):
        """PyPI's torch for Linux wants NVIDIA's libraries too, GPU or not: 5 GB."""
        python, stamp = os.path.join(folder, "bin", "python"), os.path.join(folder, ".complete")
        wanted = " ".join(self.PACKAGES)
        if not os.path.exists(stamp) or open(stamp).read() != wanted:
            print(f"setting up {folder}: {wanted}", file=sys.stderr, flush=True)
            run([sys.executable, "-m", "venv", folder])
            run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                 *self.PACKAGES])
            with open(stamp, "w") as file:
                file.write(wanted)
        return python

    def prefill(self, model, ids_file, sizes):
        """-> {attention mode: {tokens: tokens/s}}"""
        report = run_json([self.python, os.path.join(BENCH, "torch_prefill.py"), "--model", model,
                           "--ids", ids_file, "--sizes", ",".join(map(str, sizes)), "--threads",
                           str(self.settings.threads)])
        self.version = report["version"]
        return {mode: {int(size): 1000 * int(size) / ms for size, ms in times.items()}
                for mode, times in report["prefill_ms"].items()}
