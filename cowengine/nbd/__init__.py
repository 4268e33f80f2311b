"""NBD: volumes and snapshots as block devices for whatever speaks the protocol. docs/nbd.md says what of it is spoken.

protocol.py     the numbers of the protocol
negotiation.py  the handshake of one connection: which export, which replies, which contexts
exports.py      what can be asked for by name, and who uses it
contexts.py     block status: what is allocated, what changed, how old it is
server.py       sockets, connections, limits, draining
tls.py          TLS between a client and a connection that knows nothing of it
client.py       a client, for live volumes of a store that another process serves

The transmission phase itself is core/transmission.pyx.
"""
