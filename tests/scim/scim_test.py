"""The running binary against scim2-tester, with the API key that an identity provider would have, and in the shapes that
Entra ID and Okta send."""

import json
import os
import secrets
import signal
import subprocess
import tempfile
import time
import unittest
import urllib.request

import httpx2 as httpx
from scim2_client.engines.httpx2 import SyncSCIMClient
from scim2_tester import Status, check_server

from tests.ports import free_port

BINARY = os.environ["PLATFORM_API_BIN"]
PATCH = "urn:ietf:params:scim:api:messages:2.0:PatchOp"
FINE = {Status.SUCCESS, Status.COMPLIANT, Status.ACCEPTABLE, Status.SKIPPED}


class Scim(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        bootstrap = secrets.token_hex(24)
        cls.base = f"http://127.0.0.1:{free_port()}"
        environment = {
            **os.environ,
            "PLATFORM_API__HTTP__LISTEN": cls.base.removeprefix("http://"),
            "PLATFORM_API__STORE__URL": f"sqlite:{cls.folder.name}/data",
            "PLATFORM_API__AUTH__BOOTSTRAP_KEY": bootstrap,
        }
        cls.log = open(f"{cls.folder.name}/log", "wb")
        cls.daemon = subprocess.Popen([BINARY, "serve"], env=environment, stdout=cls.log, stderr=cls.log)
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{cls.base}/health/ready", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        cls.tenant, admin = cls.onboard(bootstrap)
        cls.admin = cls.client(admin)
        body = {"name": "identity provider", "role": "admin", "scopes": ["users:*", "groups:*", "permissions:grant"]}
        issued = cls.admin.post(f"{cls.base}/v1/tenants/{cls.tenant}/api-keys", json=body)
        issued.raise_for_status()
        cls.http = cls.client(issued.json()["key"])

    @classmethod
    def onboard(cls, bootstrap):
        answer = cls.client(bootstrap).post(f"{cls.base}/v1/tenants", json={"name": "Acme"})
        answer.raise_for_status()
        return answer.json()["tenant"]["id"], answer.json()["adminApiKey"]["key"]

    @classmethod
    def client(cls, key):
        return httpx.Client(base_url=f"{cls.base}/scim/v2", headers={"Authorization": f"Bearer {key}"}, timeout=30)

    @classmethod
    def tearDownClass(cls):
        cls.daemon.send_signal(signal.SIGTERM)
        cls.daemon.wait(30)
        cls.log.close()
        cls.folder.cleanup()

    def call(self, method, path, body=None, status=200):
        headers = {"Content-Type": "application/scim+json", "Accept": "application/scim+json"}
        answer = self.http.request(method, path, content=json.dumps(body) if body else None, headers=headers)
        self.assertEqual(answer.status_code, status, answer.text)
        return answer.json() if answer.content else None

    def patch(self, path, *operations, status=200):
        return self.call("PATCH", path, {"schemas": [PATCH], "Operations": list(operations)}, status)

    def test_scim2_tester(self):
        results = check_server(SyncSCIMClient(self.http))
        wrong = [f"{one.title}: {one.reason}" for one in results if one.status not in FINE]
        self.assertGreater(sum(one.status in FINE - {Status.SKIPPED} for one in results), 40)
        self.assertEqual(wrong, [], "\n".join(wrong))

    def test_entra_id(self):
        # What it does before it makes somebody, and then.
        found = self.call("GET", '/Users?filter=userName eq "jane@acme.example"')
        self.assertEqual((found["totalResults"], found["Resources"]), (0, []))
        jane = self.call("POST", "/Users", {
            "schemas": ["urn:ietf:params:scim:schemas:core:2.0:User",
                        "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"],
            "externalId": "jane-object-id", "userName": "jane@acme.example", "active": True, "title": "Engineer",
            "emails": [{"primary": True, "type": "work", "value": "jane@acme.example"}],
            "meta": {"resourceType": "User"}, "name": {"formatted": "Jane Doe", "familyName": "Doe", "givenName": "Jane"},
            "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User": {"department": "R&D"}}, 201)
        twin = self.call("POST", "/Users", {"userName": "JANE@acme.example"}, 409)
        self.assertEqual(twin["scimType"], "uniqueness")
        path = f"/Users/{jane['id']}"
        changed = self.patch(path,
                             {"op": "Replace", "path": "active", "value": "False"},
                             {"op": "Add", "path": 'emails[type eq "home"].value', "value": "jane@home.example"},
                             {"op": "Replace", "path": "name.familyName", "value": "Roe"},
                             {"op": "Add", "value": {"displayName": "Jane Roe", "name.givenName": "J."}})
        self.assertEqual((changed["active"], changed["displayName"]), (False, "Jane Roe"))
        self.assertEqual(changed["name"], {"givenName": "J.", "familyName": "Roe"})
        self.assertEqual(changed["emails"][1], {"value": "jane@home.example", "type": "home", "primary": False})
        # It is the same person that our own API knows, deactivated.
        ours = self.admin.get(f"{self.base}/v1/users/{jane['id']}").json()
        self.assertEqual((ours["active"], ours["externalId"]), (False, "jane-object-id"))
        group = self.call("POST", "/Groups", {"displayName": "Entra", "externalId": "g-1", "members": []}, 201)
        path = f"/Groups/{group['id']}?excludedAttributes=members"
        self.patch(path, {"op": "Add", "path": "members", "value": [{"value": jane["id"]}]})
        found = self.call("GET", '/Groups?excludedAttributes=members&filter=displayName eq "entra"')
        self.assertNotIn("members", found["Resources"][0])
        whole = self.call("GET", f"/Groups/{group['id']}")
        self.assertEqual([one["value"] for one in whole["members"]], [jane["id"]])
        self.patch(path, {"op": "Remove", "path": f'members[value eq "{jane["id"]}"]'})
        self.assertNotIn("members", self.call("GET", f"/Groups/{group['id']}"))
        self.call("DELETE", f"/Groups/{group['id']}", status=204)
        self.call("GET", f"/Groups/{group['id']}", status=404)

    def test_okta(self):
        john = self.call("POST", "/Users", {"userName": "john@acme.example", "active": True}, 201)
        path = f"/Users/{john['id']}"
        whole = {**john, "name": {"givenName": "John", "familyName": "Doe"}, "locale": "en-US",
                 "emails": [{"primary": True, "value": "john@acme.example", "type": "work"}]}
        self.assertEqual(self.call("PUT", path, whole)["name"]["givenName"], "John")
        self.assertFalse(self.patch(path, {"op": "replace", "value": {"active": False}})["active"])
        self.assertTrue(self.patch(path, {"op": "replace", "value": {"active": True}})["active"])
        group = self.call("POST", "/Groups", {"displayName": "Okta"}, 201)
        path = f"/Groups/{group['id']}"
        renamed = self.patch(path, {"op": "replace", "value": {"id": group["id"], "displayName": "Okta 2"}})
        self.assertEqual(renamed["displayName"], "Okta 2")
        added = self.patch(path, {"op": "add", "path": "members", "value": [{"value": john["id"], "display": "john"}]})
        self.assertEqual(len(added["members"]), 1)
        nobody = {"op": "add", "path": "members", "value": [{"value": "00000000-0000-7000-8000-000000000000"}]}
        self.assertEqual(self.patch(path, nobody, status=400)["scimType"], "invalidValue")
        page = self.call("GET", "/Users?startIndex=1&count=1")
        self.assertEqual((page["itemsPerPage"], len(page["Resources"])), (1, 1))
        self.assertGreaterEqual(page["totalResults"], 1)
        self.assertEqual(self.call("GET", "/Users?count=0")["Resources"], [])
        self.assertEqual(self.call("GET", "/Users?filter=userName", status=400)["scimType"], "invalidFilter")

    def test_a_query_in_a_body_shows_what_policies_leave(self):
        self.call("POST", "/Groups", {"displayName": "Hidden"}, 201)
        kinds = lambda: {one["meta"]["resourceType"] for one in self.call("POST", "/.search", {"count": 100})["Resources"]}
        self.assertIn("Group", kinds())
        policy = {"name": "no groups", "effect": "deny", "subjects": [{"type": "everybody"}], "permissions": ["groups:read"]}
        made = self.admin.post(f"{self.base}/v1/policies", json=policy)
        self.assertEqual(made.status_code, 201, made.text)
        try:
            self.call("GET", "/Groups", status=403)
            self.assertNotIn("Group", kinds())
        finally:
            self.admin.delete(f"{self.base}/v1/policies/{made.json()['id']}", headers={"If-Match": "*"}).raise_for_status()

    def test_versions_and_what_the_key_may_not(self):
        made = self.http.post("/Users", json={"userName": "versioned"})
        path, tag = f"/Users/{made.json()['id']}", made.headers["etag"]
        self.assertEqual((made.headers["location"], made.json()["meta"]["version"]), (f"/scim/v2{path}", tag))
        body = {"Operations": [{"op": "replace", "path": "displayName", "value": "V"}]}
        self.assertEqual(self.http.patch(path, json=body, headers={"If-Match": tag}).status_code, 200)
        self.assertEqual(self.http.patch(path, json=body, headers={"If-Match": tag}).status_code, 412)
        refused = self.http.get(f"{self.base}/v1/quotas/{self.tenant}")
        self.assertEqual(refused.status_code, 403, "scopes reach no further")
        unknown = httpx.get(f"{self.base}/scim/v2/Users")
        self.assertEqual((unknown.status_code, unknown.headers["content-type"]), (401, "application/scim+json"))


if __name__ == "__main__":
    unittest.main()
