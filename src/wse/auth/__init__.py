"""Ready-made authentication: SCRAM-SHA-256, mutual and without sending the password. Needs the extra `wse[scram]`."""

from wse.auth.scram import Scram, ScramKeys, ScramServer, UserStore

__all__ = ["Scram", "ScramKeys", "ScramServer", "UserStore"]
