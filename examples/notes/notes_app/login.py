"""The login: a password by HTTP for a token, and the token for a WebSocket."""

import hashlib
import secrets
import sqlite3
import time
from typing import Annotated

import msgspec
from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, Field

from .database import Db

# The users of a new database, for this example only.
PASSWORDS = {"ada": "lovelace", "grace": "hopper"}

DAY = 24 * 60 * 60

http = APIRouter()


class Credentials(BaseModel):
    """What the form sends."""

    name: Annotated[str, Field(max_length=50)]
    password: Annotated[str, Field(max_length=200)]


class Grant(BaseModel):
    """What it gets."""

    token: str


class Login(msgspec.Struct):
    """The identity of a client."""

    token: str
    """What `POST /login` has returned."""


class Session(msgspec.Struct):
    """To whom a token belongs, and until when."""

    user: str
    expires: float


def add_user(db: sqlite3.Connection, name: str, password: str) -> None:
    salt = secrets.token_bytes(16)
    db.execute("INSERT INTO user VALUES (?, ?, ?)", (name, salt, hash_of_password(password, salt)))


@http.post("/login")
def log_in(credentials: Credentials, db: Db) -> Grant:  # FastAPI runs plain functions in threads: hashing takes long
    user = db.execute("SELECT salt, hash FROM user WHERE name = ?", (credentials.name,)).fetchone()
    # A name that nobody has takes as long as one that somebody has.
    found = hash_of_password(credentials.password, user["salt"] if user else b"")
    if user is None or not secrets.compare_digest(found, user["hash"]):
        raise HTTPException(401, "The name or the password is wrong.")
    token = secrets.token_urlsafe()
    db.execute("DELETE FROM token WHERE expires < ?", (time.time(),))
    db.execute("INSERT INTO token VALUES (?, ?, ?)", (hash_of_token(token), credentials.name, time.time() + DAY))
    db.commit()  # FastAPI ends dependencies after the answer, and the token is used at once
    return Grant(token=token)


def session_of(db: sqlite3.Connection, token: str) -> Session | None:
    """The session of a token; `None` if there is none, or if it is over."""
    row = db.execute(
        "SELECT user, expires FROM token WHERE hash = ? AND expires > ?", (hash_of_token(token), time.time())
    ).fetchone()
    return None if row is None else Session(*row)


def forget(db: sqlite3.Connection, token: str) -> None:
    db.execute("DELETE FROM token WHERE hash = ?", (hash_of_token(token),))


def hash_of_password(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=5)


def hash_of_token(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()  # a token is random and long, so a fast hash will do
