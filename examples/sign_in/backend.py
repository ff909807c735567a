"""A backend with users of its own, whose page reads answers directly from the Reattach server.

A person signs in here and gets a session cookie. The page asks this backend for stream tokens, each
of them for the conversation of that person and for ten minutes. The API key never leaves this
process. Signing out revokes the tokens of the session.

    reattach serve
    reattach keys create backend
    cp js/dist/index.js examples/sign_in/reattach.js
    API_KEY=<the key> uvicorn examples.sign_in.backend:app --port 3000

Then open http://localhost:3000 and sign in as ada with the password lighthouse.
"""

import asyncio
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import httpx2
from fastapi import Cookie, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, HTMLResponse
from pydantic import BaseModel

SERVER = os.environ.get("SERVER", "http://localhost:8283")
ORIGIN = os.environ.get("ORIGIN", "http://localhost:3000")
TOKEN_SECONDS = int(os.environ.get("TOKEN_SECONDS", "600"))
SESSION_SECONDS = 12 * 3600
FOLDER = Path(__file__).parent

reattach = httpx2.AsyncClient(
    base_url=SERVER, headers={"Authorization": f"Bearer {os.environ['API_KEY']}"}
)


# Your application has users and sessions already. Here they are in memory.


@dataclass
class Session:
    user: str
    ends_at: float = field(default_factory=lambda: time.time() + SESSION_SECONDS)
    tokens: dict[str, float] = field(default_factory=dict)
    """When each stream token of the session expires, by its id."""
    is_over: bool = False


def hashed(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1)


SALT = secrets.token_bytes(16)
USERS = {"ada": hashed("lighthouse", SALT), "grace": hashed("compiler", SALT)}
sessions: dict[str, Session] = {}


def current_session(session: Annotated[str | None, Cookie()] = None) -> Session:
    found = sessions.get(session or "")
    if found is None or found.ends_at < time.time():
        raise HTTPException(401, "Sign in first.")
    return found


SignedIn = Annotated[Session, Depends(current_session)]


class Credentials(BaseModel):
    user: str
    password: str


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    async with reattach:
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/sign-in", status_code=204)
async def sign_in(given: Credentials, request: Request, response: Response) -> None:
    known = USERS.get(given.user, b"")
    password = await asyncio.to_thread(hashed, given.password, SALT)
    if not hmac.compare_digest(known, password):
        raise HTTPException(401, "Wrong name or password.")
    name = secrets.token_urlsafe(32)
    sessions[name] = Session(given.user)
    response.set_cookie(
        "session",
        name,
        max_age=SESSION_SECONDS,
        httponly=True,  # No script can read it.
        samesite="strict",  # No other site can use it.
        secure=request.url.scheme == "https",
    )


@app.post("/sign-out", status_code=204)
async def sign_out(
    signed_in: SignedIn, response: Response, session: Annotated[str, Cookie()]
) -> None:
    """End the session, and revoke its tokens: their streams are cut off within seconds."""
    del sessions[session]
    signed_in.is_over = True
    response.delete_cookie("session")
    await revoke_tokens(signed_in)


async def revoke_tokens(session: Session) -> None:
    now = time.time()
    for token_id, expires_at in session.tokens.items():
        if expires_at > now:
            revoked = await reattach.delete(f"/v1/tokens/{token_id}")
            if revoked.status_code != 404:  # 404: it is gone already.
                revoked.raise_for_status()


# Each user has an agent and a conversation on the Reattach server, found by the agent's name.

creating = asyncio.Lock()


async def ask_reattach(method: str, path: str, **options: Any) -> Any:
    answer = await reattach.request(method, path, **options)
    answer.raise_for_status()
    return answer.json()


async def conversation_of(user: str) -> str:
    """Return the user's conversation; the first call creates it."""
    async with creating:
        name = f"guide of {user}"
        agents = await ask_reattach("GET", "/v1/agents/", params={"name": name, "limit": 1})
        agent = (
            agents[0] if agents else await ask_reattach("POST", "/v1/agents/", json={"name": name})
        )
        of_agent = {"agent_id": agent["id"], "limit": 1}
        known = await ask_reattach("GET", "/v1/conversations/", params=of_agent)
        if not known:
            known = [await ask_reattach("POST", "/v1/conversations/", params=of_agent, json={})]
        conversation_id: str = known[0]["id"]
        return conversation_id


@app.get("/conversation")
async def conversation(session: SignedIn) -> dict[str, str]:
    return {"user": session.user, "server": SERVER, "id": await conversation_of(session.user)}


@app.post("/token")
async def token(session: SignedIn) -> dict[str, str]:
    """Issue a token for the person's own conversation; the page names none."""
    wanted = {
        "conversation_id": await conversation_of(session.user),
        "scope": ["read", "send", "cancel"],
        "expires_in_seconds": TOKEN_SECONDS,
        "origin": ORIGIN,
    }
    issued = await ask_reattach("POST", "/v1/tokens", json=wanted)
    session.tokens[issued["id"]] = datetime.fromisoformat(issued["expires_at"]).timestamp()
    if session.is_over:  # The person has signed out meanwhile.
        await revoke_tokens(session)
        raise HTTPException(401, "Sign in first.")
    return {"token": issued["token"], "expires_at": issued["expires_at"]}


@app.get("/")
async def page() -> HTMLResponse:
    return HTMLResponse((FOLDER / "index.html").read_text())


@app.get("/reattach.js")
async def client() -> FileResponse:
    return FileResponse(FOLDER / "reattach.js")
