"""The contract of a server, an AsyncAPI 3 document, and the clients and the page that are made of it."""
