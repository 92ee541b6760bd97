"""The programs of the test: a NATS server, the daemon, the proxy. Each on a private port, in a folder of its own."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
KIT = ROOT / "config" / "litellm"
PROXY = Path(__file__).resolve().parent / "proxy"
DAEMON = Path(os.environ.get("PLATFORM_API_BIN") or ROOT / "target" / "debug" / "platform-api")
NATS_SERVER = os.environ.get("TEST_NATS_SERVER_BIN") or "nats-server"
BOOTSTRAP_KEY = "kit-test-bootstrap-key-0123456789"
PATIENCE_SECONDS = 60


class Part:
    """One program that can be killed and started again."""

    def __init__(self, name: str, command: list[str], folder: Path, environment: dict[str, str], ready_url: str = ""):
        self._name, self._command, self._ready_url = name, command, ready_url
        self._environment = {**os.environ, **environment}
        self._log = folder / f"{name}.log"
        self._process = None

    def start(self) -> "Part":
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)
        if self._ready_url:
            until(f"{self._name} answers", lambda: request("GET", self._ready_url)[0] == 200, self.log)
        return self

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def log(self) -> str:
        return self._log.read_text(errors="replace")[-4_000:]

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=PATIENCE_SECONDS)
            self._process = None


def nats_server(folder: Path, port: int) -> Part:
    monitor_port = free_port()
    command = [NATS_SERVER, "--addr", "127.0.0.1", "--port", str(port), "--http_port", str(monitor_port)]
    command += ["--jetstream", "--store_dir", str(folder / "nats")]
    return Part("nats", command, folder, {}, f"http://127.0.0.1:{monitor_port}/healthz")


def daemon(folder: Path, port: int, nats_port: int) -> Part:
    environment = {
        "PLATFORM_API__HTTP__LISTEN": f"127.0.0.1:{port}",
        "PLATFORM_API__STORE__URL": f"sqlite:{folder / 'data'}",
        "PLATFORM_API__NATS__URL": f"nats://127.0.0.1:{nats_port}",
        "PLATFORM_API__AUTH__BOOTSTRAP_KEY": BOOTSTRAP_KEY,
        # A killed daemon's messages come back soon.
        "PLATFORM_API__NATS__ACK_WAIT_MS": "3000",
        "PLATFORM_API__HTTP__DECISION_REFRESH_MS": "200",
        "PLATFORM_API__HTTP__DECISION_VALID_MS": "1000",
    }
    return Part("daemon", [str(DAEMON), "serve"], folder, environment, f"http://127.0.0.1:{port}/health/live")


def proxy(folder: Path, port: int, environment: dict[str, str]) -> Part:
    """The real LiteLLM, without network: its own price map, no telemetry."""
    environment = {
        "PYTHONPATH": os.pathsep.join([str(KIT), str(PROXY)]),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
        "LITELLM_MASTER_KEY": "sk-master-of-the-kit-test-0123456789",
        **environment,
    }
    command = [str(Path(sys.executable).parent / "litellm"), "--config", str(PROXY / "config.yaml")]
    command += ["--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
    return Part("proxy", command, folder, environment, f"http://127.0.0.1:{port}/health/liveliness")


def syncing_daemon(folder: Path, port: int, proxy_url: str, master_key: str) -> Part:
    environment = {
        "PLATFORM_API__HTTP__LISTEN": f"127.0.0.1:{port}",
        "PLATFORM_API__STORE__URL": f"sqlite:{folder / 'data'}",
        "PLATFORM_API__AUTH__BOOTSTRAP_KEY": BOOTSTRAP_KEY,
        "PLATFORM_API__LITELLM__URL": proxy_url,
        "PLATFORM_API__LITELLM__MASTER_KEY": master_key,
    }
    return Part("daemon", [str(DAEMON), "serve"], folder, environment, f"http://127.0.0.1:{port}/health/live")


def kept_proxy(folder: Path, port: int, master_key: str) -> Part:
    """LiteLLM's application with a table in memory for a database: see proxy/kept.py."""
    environment = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
        "LITELLM_MASTER_KEY": master_key,
        "LITELLM_SALT_KEY": "sk-salt-of-the-credentials-test",
    }
    command = [sys.executable, str(PROXY / "kept.py"), str(port)]
    return Part("kept", command, folder, environment, f"http://127.0.0.1:{port}/health/liveliness")


def request(method: str, url: str, body=None, headers: dict[str, str] | None = None, timeout: float = 20):
    """(status, headers, text); status 0 without an answer."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **(headers or {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=timeout) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()
    except (OSError, ValueError) as error:
        return 0, {}, str(error)
    except Exception as error:
        # http.client's own, when a server is killed in the middle of an answer.
        return 0, {}, str(error)


def until(what: str, holds, explain=lambda: "") -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        if time.monotonic() > end:
            raise AssertionError(f"waited {PATIENCE_SECONDS} s in vain: {what}\n{explain()}")
        time.sleep(0.1)
