"""Publishers send to the users of a cluster from outside: from scripts, workers and other services."""

from wse.publisher.blocking import BlockingPublisher
from wse.publisher.publisher import Publisher

__all__ = ["BlockingPublisher", "Publisher"]
