"""WSE with a procedure that says what it takes and returns. usage: wse_typed_server.py PORT msgspec|pydantic"""

import asyncio
import sys
from itertools import count
from typing import Annotated

import msgspec
from pydantic import BaseModel, Field

from wse import WseServer


class Struct(msgspec.Struct):
    a: Annotated[int, msgspec.Meta(ge=0)]
    b: int
    n: int


class Model(BaseModel):
    a: Annotated[int, Field(ge=0)]
    b: int
    n: int


def of_struct(conn, payload: Struct) -> Struct:
    return payload


def of_model(conn, payload: Model) -> Model:
    return payload


async def main(port, kind):
    numbers = count(1)

    def identify(auth):
        if auth.identity.partition(":")[0] == "secret":
            auth.accept(f"user{next(numbers)}")
        else:
            auth.refuse()

    server = WseServer(identify, port=port)
    server.register("echo", {"msgspec": of_struct, "pydantic": of_model}[kind])
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
