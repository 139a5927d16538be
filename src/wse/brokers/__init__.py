"""Brokers: what the nodes of a cluster share, behind the port `wse.core.broker.Broker`."""
