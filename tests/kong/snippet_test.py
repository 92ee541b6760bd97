"""config/kong/decision.lua in nginx with its Lua module, over real sockets, against the real daemon.

    python3 -m unittest tests/kong/snippet_test.py

What Kong gives the snippet is in kong.lua; nginx, LuaJIT, the sockets and the daemon are real. NGINX_BIN, NGINX_MODULES and
NGINX_LUA (a folder of Lua libraries) name them when they are not where Debian's packages nginx-core, libnginx-mod-http-lua,
lua-resty-core and lua-cjson put them. Skipped, and said so, when there is none.
"""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.request

from tests.ports import free_port

ROOT = pathlib.Path(__file__).resolve().parents[2]
KEY = "snippet-bootstrap-key-0123456789"
NGINX = os.environ.get("NGINX_BIN") or shutil.which("nginx") or "/usr/sbin/nginx"
MODULES = pathlib.Path(os.environ.get("NGINX_MODULES", "/usr/lib/nginx/modules"))
LUA = os.environ.get("NGINX_LUA", "/usr")
DAEMON = os.environ.get("PLATFORM_API_BIN", str(ROOT / "target/debug/platform-api"))

CONFIG = """
daemon off; master_process off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log notice;
env PLATFORM_API_KEY;
load_module {modules}/ndk_http_module.so;
load_module {modules}/ngx_http_lua_module.so;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;
  scgi_temp_path {folder}/s;
  lua_package_path "{here}/?.lua;{lua}/share/lua/5.1/?.lua;{lua}/share/lua/5.1/?/init.lua;;";
  lua_package_cpath "{lua}/lib/x86_64-linux-gnu/lua/5.1/?.so;;";
  init_worker_by_lua_block {{
    local shim = require "kong"
    open = shim.load("{snippet}", "{platform}", "true", "300")
    closed = shim.load("{snippet}", "{platform}", "false", "0")
  }}
  server {{
    listen 127.0.0.1:{upstream};
    location / {{ return 200 "tenant=$http_x_tenant_id"; }}
  }}
  server {{
    listen 127.0.0.1:{port};
    location /open {{ access_by_lua_block {{ open() }} proxy_pass http://127.0.0.1:{upstream}; }}
    location /closed {{ access_by_lua_block {{ closed() }} proxy_pass http://127.0.0.1:{upstream}; }}
  }}
}}
"""


def call(url, headers=None, body=None, method=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **(headers or {})}
    request = urllib.request.Request(url, data=data, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


def patiently(what, probe):
    for _ in range(900):
        try:
            found = probe()
            if found:
                return found
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"never: {what}")


@unittest.skipUnless((MODULES / "ngx_http_lua_module.so").exists(), "no nginx with its Lua module: NOT CHECKED")
class Snippet(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory(prefix="platform-api-snippet.")
        self.addCleanup(scratch.cleanup)
        self.folder = pathlib.Path(scratch.name)
        self.port, self.daemon_port = free_port(), free_port()
        self.api = f"http://127.0.0.1:{self.daemon_port}"
        self.start_daemon()
        config = CONFIG.format(folder=self.folder, modules=MODULES, here=ROOT / "tests/kong", lua=LUA, platform=self.api,
                               snippet=ROOT / "config/kong/decision.lua", upstream=free_port(), port=self.port)
        (self.folder / "nginx.conf").write_text(config)
        environment = {**os.environ, "PLATFORM_API_KEY": KEY}
        self.run_part([NGINX, "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")], environment)
        patiently("nginx", lambda: call(f"http://127.0.0.1:{self.port}/"))

    def run_part(self, command, environment):
        log = open(self.folder / f"{pathlib.Path(command[0]).name}.log", "ab")
        self.addCleanup(log.close)
        part = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

        def end():
            part.kill()
            part.wait()

        self.addCleanup(end)
        return part

    def start_daemon(self):
        environment = {
            **os.environ,
            "PLATFORM_API__AUTH__BOOTSTRAP_KEY": KEY,
            "PLATFORM_API__STORE__URL": f"sqlite:{self.folder}/data",
            "PLATFORM_API__HTTP__LISTEN": f"127.0.0.1:{self.daemon_port}",
        }
        self.daemon = self.run_part([DAEMON, "serve"], environment)
        patiently("the daemon", lambda: call(f"{self.api}/health/ready")[0] == 200)

    def administer(self, method, path, body=None):
        status, _, text = call(self.api + path, {"Authorization": f"Bearer {KEY}"}, body, method)
        self.assertLess(status, 300, text)
        return json.loads(text or "null")

    def onboard(self, name, limit):
        tenant = self.administer("POST", "/v1/tenants", {"name": name})["tenant"]["id"]
        self.administer("PUT", f"/v1/quotas/{tenant}", {"quotas": [
            {"scope": {"type": "tenant"}, "metric": "tokens", "period": "month", "limit": limit, "enforcement": "block"}]})
        return tenant

    def use(self, tenant, tokens):
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.administer("POST", "/v1/usage/events", [{"eventId": os.urandom(8).hex(), "occurredAt": now, "tenantId": tenant,
                        "payload": {"usage": {"promptTokens": tokens, "completionTokens": 0}}}])

    def ask(self, place, tenant, headers=None):
        return call(f"http://127.0.0.1:{self.port}/{place}?consumer={tenant}", headers)

    def decision(self, place, tenant):
        return self.ask(place, tenant)[1]["X-Platform-Api-Decision"]

    def test_a_request_is_passed_or_denied_as_the_books_say(self):
        acme, globex = self.onboard("Acme", 100), self.onboard("Globex", 100)
        status, headers, text = self.ask("open", acme, {"X-Tenant-Id": globex})
        self.assertEqual((status, headers["X-Platform-Api-Decision"]), (200, "allow"))
        self.assertEqual(text, f"tenant={acme}", "the client's word is overwritten by the consumer's")
        self.use(acme, 100)
        patiently("the denial", lambda: self.decision("open", acme) == "deny")
        status, headers, _ = self.ask("open", acme)
        self.assertEqual(status, 429)
        self.assertGreater(int(headers["Retry-After"]), 0)
        self.assertEqual(self.decision("open", globex), "allow")
        # Nobody, and somebody we do not know.
        self.assertEqual(call(f"http://127.0.0.1:{self.port}/open")[0], 403)
        status, headers, _ = self.ask("open", "0199a8b2-5c00-7abc-8def-0123456789ab")
        self.assertEqual((status, headers["X-Platform-Api-Decision"]), (403, "unknown"))

    def test_without_an_answer_a_denial_holds_and_the_rest_is_as_chosen(self):
        acme, globex = self.onboard("Acme", 100), self.onboard("Globex", 100)
        self.use(acme, 100)
        for place in ("open", "closed"):
            patiently("the denial", lambda: self.decision(place, acme) == "deny")
            self.assertEqual(self.decision(place, globex), "allow")
        self.daemon.kill()
        self.daemon.wait()
        patiently("the end of what was known", lambda: self.decision("open", globex) == "unavailable")
        status, headers, text = self.ask("open", globex)
        self.assertEqual((status, text), (200, f"tenant={globex}"), "fail open, and the header says so")
        patiently("the end of what was known", lambda: self.decision("closed", globex) == "unavailable")
        status, headers, _ = self.ask("closed", globex)
        self.assertEqual((status, headers["Retry-After"]), (503, "1"))
        self.assertEqual(self.ask("open", acme)[0], 429, "the denial outlives the platform")
        self.assertEqual(self.ask("closed", acme)[0], 503, "and does not where it was told not to")
        self.start_daemon()
        patiently("the platform again", lambda: self.decision("open", globex) == "allow")

    def test_the_example_has_the_snippet_word_for_word(self):
        example = (ROOT / "config/kong/kong.yml").read_text().splitlines()
        start = example.index("            - |") + 1
        snippet = (ROOT / "config/kong/decision.lua").read_text().splitlines()
        found = [line[14:] for line in example[start:start + len(snippet)]]
        self.assertEqual(found, snippet)


if __name__ == "__main__":
    unittest.main()
