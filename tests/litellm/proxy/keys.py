"""The keys of the proxy under test: `sk-<team>` belongs to the team. Stands for LiteLLM's own, which need a database."""

from fastapi import HTTPException
from litellm.proxy._types import UserAPIKeyAuth, hash_token


async def authenticate(request, api_key: str) -> UserAPIKeyAuth:
    team = api_key.removeprefix("sk-")
    if team not in ("acme", "globex"):
        raise HTTPException(status_code=401, detail="no such key")
    return UserAPIKeyAuth(
        api_key=api_key, token=hash_token(api_key), team_id=f"team-{team}", org_id=f"org-{team}",
        user_id=f"user-{team}", key_alias=f"{team}-key",
    )
