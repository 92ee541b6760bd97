"""LiteLLM's own application, its management API included, with a table in memory where it would have a database.

    python kept.py PORT

What answers under /credentials is LiteLLM's code: its routes, its models, its checks, its encryption. Virtual keys need more
of a database than this; their list is empty.
"""

import json
import os
import sys
from types import SimpleNamespace

import uvicorn
from litellm.proxy import proxy_server
from prisma.errors import UniqueViolationError


def stored(data):
    """Columns of JSON are written as text, and read as what it says."""
    json_columns = ("credential_values", "credential_info")
    return {name: json.loads(value) if name in json_columns else value for name, value in data.items()}


class Table:
    """As much of a table of the database as credentials use."""

    def __init__(self):
        self.rows = {}

    async def create(self, data):
        if data["credential_name"] in self.rows:
            raise UniqueViolationError({"user_facing_error": {"message": "credential_name is there", "meta": {}}})
        return self.rows.setdefault(data["credential_name"], stored(data))

    async def find_unique(self, where):
        return self.rows.get(where["credential_name"])

    async def find_first(self, where):
        return await self.find_unique(where)

    async def find_many(self, **_):
        return list(self.rows.values())

    async def update(self, where, data):
        row = self.rows.get(where["credential_name"])
        if row is not None:
            row.update(stored(data))
        return row

    async def delete(self, where):
        return self.rows.pop(where["credential_name"], None)


class Empty(Table):
    """A table of which nothing is asked but whether there is something in it."""

    async def find_unique(self, where=None, **_):
        return None


class Database:
    def __init__(self):
        self.litellm_credentialstable = Table()

    def __getattr__(self, table):
        return Empty()

    async def query_raw(self, text, *_):
        return [{"count": 0}] if "COUNT(*)" in text else []


class WithDatabase:
    """Hands the application its database, however often its start-up takes it away."""

    def __init__(self, app):
        self._app, self._client = app, SimpleNamespace(db=Database())

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            proxy_server.prisma_client = self._client
        await self._app(scope, receive, send)


if __name__ == "__main__":
    proxy_server.master_key = os.environ["LITELLM_MASTER_KEY"]
    uvicorn.run(WithDatabase(proxy_server.app), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
