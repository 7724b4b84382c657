"""gRPC's server side over HTTP/2 (RFC 9113) on one event loop, for a service whose calls carry images.

socket ─> receiving.py: frames ─> connection.py ─┬─ DATA ────> inbox.py: messages, where their bytes arrived
                                                 └─ HEADERS ─> call.py ─> server.py: its method, a coroutine
socket <─ sending.py: frames <───────────────────────────────────┘

gRPC's own library wakes six threads for an image, and copies it three times. Here it wakes the loop, and is copied once
between the kernel and where it is read. Measured on two cores with EfficientNet-Lite0 in bf16, by turns with grpc.aio:
an image costs the door a third less, and one caller waits 0.2 ms less for its answer. A server upon h2, a whole HTTP/2
in Python, was as slow as grpc.aio: it copies a message five times.

The compression of headers (HPACK) is hpack's. Clients are whatever speaks gRPC.
"""
