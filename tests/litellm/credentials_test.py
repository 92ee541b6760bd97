"""Providers of tenants as LiteLLM's credentials: the real daemon, and LiteLLM's own management API.

    python -m unittest tests/litellm/credentials_test.py        (with what requirements.txt names)

LiteLLM's database is a table in memory (`proxy/kept.py`): everything above it is LiteLLM's code.
"""

import json
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import parts  # noqa: E402
from tests.ports import free_port  # noqa: E402

MASTER_KEY = "sk-master-of-the-credentials-test-0123456789"
SECRETS = ("sk-canary-of-acme-0123456789-1", "sk-canary-of-acme-0123456789-2")


class Credentials(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory(prefix="platform-api-credentials.")
        self.addCleanup(scratch.cleanup)
        folder = pathlib.Path(scratch.name)
        daemon_port, proxy_port = free_port(), free_port()
        self.api, self.llm = f"http://127.0.0.1:{daemon_port}", f"http://127.0.0.1:{proxy_port}"
        self.proxy = parts.kept_proxy(folder, proxy_port, MASTER_KEY)
        self.daemon = parts.syncing_daemon(folder, daemon_port, self.llm, MASTER_KEY)
        for part in (self.proxy, self.daemon):
            self.addCleanup(part.kill)
            part.start()
        tenant = self.administer("POST", "/v1/tenants", {"name": "Acme"})
        self.tenant, self.key = tenant["tenant"]["id"], tenant["adminApiKey"]["key"]

    def administer(self, method, path, body=None, key=parts.BOOTSTRAP_KEY):
        status, _, text = parts.request(method, self.api + path, body, {"X-API-Key": key, "If-Match": "*"})
        self.assertIn(status, (200, 201), text)
        return json.loads(text)

    def credentials(self):
        status, _, text = parts.request("GET", self.llm + "/credentials", None, {"Authorization": f"Bearer {MASTER_KEY}"})
        self.assertEqual(status, 200, text)
        self.assertFalse(any(secret in text for secret in SECRETS), "LiteLLM shows what it was given")
        return {one["credential_name"]: one["credential_info"] for one in json.loads(text)["credentials"]}

    def test_a_credential_follows_its_provider(self):
        provider = self.administer("POST", "/v1/providers", {"name": "OpenAI", "kind": "openai"}, self.key)["id"]
        name = f"platform-api.{self.tenant}.{provider}"
        self.assertEqual(self.credentials(), {})
        for version, secret in enumerate(SECRETS, start=1):
            self.administer("PUT", f"/v1/providers/{provider}/secret", {"secret": secret}, self.key)
            has = lambda: self.credentials().get(name, {}).get("platform_api", {}).get("secretVersion") == version
            parts.until(f"version {version} is there", has, self.daemon.log)
        self.assertEqual(self.credentials()[name]["custom_llm_provider"], "openai")
        # A suspended tenant has nothing there, and gets it back.
        self.administer("POST", f"/v1/tenants/{self.tenant}/suspend")
        parts.until("it is taken away", lambda: self.credentials() == {}, self.daemon.log)
        self.administer("POST", f"/v1/tenants/{self.tenant}/reactivate")
        parts.until("it is there again", lambda: name in self.credentials(), self.daemon.log)
        self.administer("DELETE", f"/v1/providers/{provider}/secret", None, self.key)
        parts.until("it is revoked", lambda: self.credentials() == {}, self.daemon.log)
        actions = [one["record"]["action"] for one in self.administer("GET", "/v1/audit?limit=500", None, self.key)["items"]]
        # Written before it is done, and again when it is tried again.
        self.assertGreaterEqual(actions.count("providerSecret.handedOver"), 3)
        self.assertGreaterEqual(actions.count("providerSecret.withdrawn"), 2)
        for log in (self.daemon.log(), self.proxy.log()):
            self.assertFalse(any(secret in log for secret in SECRETS), log)


if __name__ == "__main__":
    unittest.main()
