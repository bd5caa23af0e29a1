"""The broker: requests to it, its streams, consumers and buckets, and the deliveries that it hands out.

All that knows the JetStream API lies here, whoever uses it.

May import: `mesh`, `mesh.configuration`.
"""
