"""OpenMeter's own SDK, and LiteLLM's `openmeter` callback, against the real daemon: nothing but the address is changed.

    python -m unittest tests/litellm/openmeter_test.py        (with what requirements.txt names)
"""

import datetime
import json
import os
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import parts  # noqa: E402
from tests.ports import free_port  # noqa: E402

# Read when LiteLLM is imported: its own price map, no network.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"


class OpenMeter(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory(prefix="platform-api-openmeter.")
        self.addCleanup(scratch.cleanup)
        port = free_port()
        self.api = f"http://127.0.0.1:{port}"
        # Nobody is at NATS' port: that is no matter of this door.
        daemon = parts.daemon(pathlib.Path(scratch.name), port, free_port())
        self.addCleanup(daemon.kill)
        daemon.start()
        external = [{"source": "openmeter", "kind": "subject", "id": "customer-1"}]
        onboarded = self.administer("POST", "/v1/tenants", {"name": "Acme", "externalIds": external})
        self.tenant, self.key = onboarded["tenant"]["id"], onboarded["adminApiKey"]["key"]

    def administer(self, method, path, body=None):
        status, _, text = parts.request(method, self.api + path, body, {"X-API-Key": parts.BOOTSTRAP_KEY})
        self.assertIn(status, (200, 201), text)
        return json.loads(text)

    def ledger(self):
        items = self.administer("GET", f"/v1/tenants/{self.tenant}/usage/events?limit=100")["items"]
        return {item["eventId"]: item for item in items}

    def test_its_sdk_ingests_events_once_and_is_told_what_is_wrong(self):
        from corehttp.exceptions import ClientAuthenticationError, HttpResponseError
        from openmeter import Client
        from openmeter.models import Event

        def event(identity, subject="customer-1", **data):
            now = datetime.datetime.now(datetime.timezone.utc)
            return Event(id=identity, source="my-app", specversion="1.0", type="prompt", subject=subject, time=now,
                         data=data)

        events = Client(endpoint=self.api, token=parts.BOOTSTRAP_KEY).events
        one = event("1", tokens="100", type="input", model="gpt-4o")
        batch = [event("2", tokens=20, type="output", model="gpt-4o"), event("3", prompt_tokens=3, completion_tokens=4)]
        for _ in range(2):
            self.assertIsNone(events.ingest_event(one))
            self.assertIsNone(events.ingest_events(batch))
            self.assertIsNone(events.ingest_events_json(one))
        totals = {identity: row["amounts"]["totalTokens"] for identity, row in self.ledger().items()}
        self.assertEqual(totals, {"1": 100, "2": 20, "3": 7})

        with self.assertRaises(HttpResponseError) as refused:
            events.ingest_event(event("4", subject="customer-2", tokens=1))
        self.assertEqual(refused.exception.status_code, 422)
        self.assertIn("UNKNOWN_TENANT", refused.exception.model.detail)
        with self.assertRaises(ClientAuthenticationError) as closed:
            Client(endpoint=self.api, token="pak_live_nobody").events.ingest_event(one)
        self.assertEqual(closed.exception.model.status, 401)
        self.assertEqual(len(self.administer("GET", "/v1/quarantine")["items"]), 1)

    def test_litellm_s_callback_is_counted_with_its_cost(self):
        os.environ["OPENMETER_API_ENDPOINT"] = self.api
        os.environ["OPENMETER_API_KEY"] = self.key
        import litellm
        from litellm.integrations.openmeter import OpenMeterLogger

        litellm.telemetry = False
        litellm.callbacks = [OpenMeterLogger()]
        self.addCleanup(setattr, litellm, "callbacks", [])
        messages = [{"role": "user", "content": "What is the answer?"}]
        answer = litellm.completion(model="gpt-4o", messages=messages, mock_response="It is 42.", user="alice")
        parts.until("the call is in the ledger", lambda: self.ledger())
        (row,) = self.ledger().values()
        self.assertEqual(row["source"], "litellm-proxy")
        self.assertEqual((row["subject"]["userId"], row["subject"]["model"]), ("alice", "gpt-4o"))
        self.assertEqual(row["amounts"]["promptTokens"], answer.usage.prompt_tokens)
        self.assertEqual(row["amounts"]["completionTokens"], answer.usage.completion_tokens)
        self.assertGreater(float(row["amounts"]["costUsd"]), 0)
        self.assertEqual(row["flags"], [])


if __name__ == "__main__":
    unittest.main()
