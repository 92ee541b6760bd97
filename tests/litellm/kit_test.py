"""The kit in config/litellm against the real LiteLLM proxy, a real NATS server and the real daemon.

    python -m unittest tests/litellm/kit_test.py        (with what requirements.txt names)

Every call whose answer a client has seen is in its tenant's ledger exactly once, whoever was killed meanwhile.
"""

import collections
import json
import pathlib
import sys
import tempfile
import threading
import time
import unittest
import uuid
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import parts  # noqa: E402
from tests.ports import free_port  # noqa: E402

TEAMS = ("acme", "globex")
CALLS = 240
CALLERS = 8


class Kit(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory(prefix="platform-api-kit.")
        self.addCleanup(scratch.cleanup)
        folder = pathlib.Path(scratch.name)
        nats_port, daemon_port, proxy_port = free_port(), free_port(), free_port()
        self.api = f"http://127.0.0.1:{daemon_port}"
        self.llm = f"http://127.0.0.1:{proxy_port}"
        self.nats = parts.nats_server(folder, nats_port)
        self.daemon = parts.daemon(folder, daemon_port, nats_port)
        self.start(self.nats)
        self.start(self.daemon)
        self.tenants = {team: self.onboard(team) for team in TEAMS}
        tenants_file = folder / "tenants.json"
        tenants_file.write_text(json.dumps({f"team:team-{team}": self.tenants[team] for team in TEAMS}))
        environment = {
            "PLATFORM_API_NATS_URL": f"nats://127.0.0.1:{nats_port}",
            "PLATFORM_API_SPOOL_DIR": str(folder / "spool"),
            "PLATFORM_API_URL": self.api,
            "PLATFORM_API_KEY": parts.BOOTSTRAP_KEY,
            "PLATFORM_API_TENANTS_FILE": str(tenants_file),
            # Everything shares the machine here.
            "PLATFORM_API_TIMEOUT_MS": "2000",
        }
        self.proxy = parts.proxy(folder, proxy_port, environment)
        self.start(self.proxy)

    def start(self, part):
        self.addCleanup(part.kill)
        part.start()

    # ---- what a client and an operator do ----

    def administer(self, method, path, body=None):
        status, _, text = parts.request(method, self.api + path, body, {"X-API-Key": parts.BOOTSTRAP_KEY})
        self.assertIn(status, (200, 201), text)
        return json.loads(text)

    def onboard(self, team):
        external = [{"source": "litellm", "kind": "team", "id": f"team-{team}"}]
        return self.administer("POST", "/v1/tenants", {"name": team, "externalIds": external})["tenant"]["id"]

    def call(self, team, model="gpt-4o", stream=False):
        """(name of the call, status, headers, text): the call's name is a tag of its event."""
        name = uuid.uuid4().hex
        body = {
            "model": model, "messages": [{"role": "user", "content": "?"}], "stream": stream,
            "metadata": {"tags": [name]},
        }
        headers = {"Authorization": f"Bearer sk-{team}"}
        return name, *parts.request("POST", self.llm + "/v1/chat/completions", body, headers)

    def served(self, team, number):
        """The call's name when its whole answer has arrived."""
        stream = number % 4 == 0
        name, status, _, text = self.call(team, stream=stream)
        whole = status == 200 and (text.rstrip().endswith("data: [DONE]") if stream else "The answer." in text)
        return (team, name) if whole else None

    def ledger(self, team):
        """Names of the tenant's calls that succeeded, as often as they were counted."""
        names, cursor = collections.Counter(), ""
        while cursor is not None:
            page = self.administer("GET", f"/v1/tenants/{self.tenants[team]}/usage/events?limit=500{cursor}")
            for event in page["items"]:
                if event["status"] == "success":
                    names.update(event["details"].get("tags", [])[:1])
            cursor = f"&cursor={page['nextCursor']}" if page.get("nextCursor") else None
        return names

    # ---- what must hold ----

    def test_every_answer_that_was_seen_is_counted_once(self):
        # The proxy dies while NATS is away: what it had answered is in its spool and nowhere else.
        disturbances = [
            (0.2, self.nats.kill), (0.35, self.proxy.kill), (0.35, self.proxy.start), (0.5, self.nats.start),
            (0.7, self.daemon.kill), (0.7, self.daemon.start), (0.85, self.proxy.stop), (0.85, self.proxy.start),
        ]
        served, given_up = [], threading.Event()

        def caller(lane):
            for number in range(CALLS // CALLERS):
                while (one := self.served(TEAMS[(lane + number) % 2], number)) is None and not given_up.is_set():
                    time.sleep(0.2)
                served.append(one)

        with ThreadPoolExecutor(CALLERS) as pool:
            lanes = [pool.submit(caller, lane) for lane in range(CALLERS)]
            try:
                for share, disturb in disturbances:
                    parts.until(f"{share:.0%} of the calls", lambda: len(served) >= share * CALLS, self.proxy.log)
                    disturb()
                for lane in lanes:
                    lane.result()
            finally:
                given_up.set()
        self.assertEqual(len(served), CALLS)
        wanted = {team: {name for of, name in served if of == team} for team in TEAMS}
        for team in TEAMS:
            parts.until(f"{team}'s ledger is whole", lambda: wanted[team] <= set(self.ledger(team)), self.proxy.log)
            twice = [name for name, count in self.ledger(team).items() if count > 1]
            self.assertEqual(twice, [])
        self.assertEqual(set(self.ledger("acme")) & set(self.ledger("globex")), set())
        self.assertEqual(self.administer("GET", "/v1/quarantine")["items"], [])
        for team in TEAMS:
            self.assertTrue(self.administer("GET", f"/v1/audit/verify?tenantId={self.tenants[team]}"))

    def test_a_quota_closes_and_a_silent_platform_does_not(self):
        quota = {"scope": {"type": "tenant"}, "metric": "requests", "period": "day", "limit": 3, "enforcement": "block",
                 "thresholds": [100]}
        self.administer("PUT", f"/v1/quotas/{self.tenants['acme']}", {"quotas": [quota]})
        parts.until("acme is refused", lambda: self.call("acme")[1] == 429, self.proxy.log)
        _, status, headers, text = self.call("acme")
        self.assertEqual(status, 429, text)
        self.assertGreater(int(headers["Retry-After"]), 0)
        self.assertEqual(self.call("globex")[1], 200)
        self.daemon.kill()
        # A denial is not forgotten while nobody answers; who was allowed stays so (fail mode `open`).
        time.sleep(1.5)
        self.assertEqual(self.call("acme")[1], 429)
        self.assertEqual(self.call("globex")[1], 200)

    def test_a_model_that_the_policy_does_not_have_is_refused_however_it_is_named(self):
        policy = {"egressHosts": [], "models": ["gpt-4*"], "failover": {"providers": [], "on": [], "attemptsMax": 0}}
        headers = {"X-API-Key": parts.BOOTSTRAP_KEY, "If-Match": "*"}
        path = f"/v1/provider-policy?tenantId={self.tenants['acme']}"
        status, _, text = parts.request("PUT", self.api + path, policy, headers)
        self.assertEqual(status, 200, text)
        self.assertEqual(self.call("acme")[1], 200)
        chat = {"messages": [{"role": "user", "content": "?"}]}
        for body in (
            {"model": "broken"},
            {"model": "gpt-4" + "o" * 300},
            {"model": ",".join(f"gpt-4-{number}" for number in range(17))},
            {"model": "gpt-4o, broken"},
            {"model": "gpt-4o", "fallbacks": ["broken"]},
            {"model": "gpt-4o", "fallbacks": [{"model": "broken"}]},
            {"model": "gpt-4o", "context_window_fallbacks": [{"gpt-4o": ["broken"]}]},
        ):
            key = {"Authorization": "Bearer sk-acme"}
            status, answered, text = parts.request("POST", self.llm + "/v1/chat/completions", {**chat, **body}, key)
            self.assertEqual(status, 403, f"{body}: {text}")
            self.assertIn("MODEL_NOT_ALLOWED", text)
            self.assertNotIn("Retry-After", answered, "waiting changes nothing")
        self.assertNotEqual(self.call("globex", model="broken")[1], 403, "the neighbour's list is its own")


if __name__ == "__main__":
    unittest.main()
