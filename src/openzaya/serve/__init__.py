"""The reasoning service: an OpenAI-compatible server that answers with Markovian RSA.

`openzaya.serve.server.serve` runs it; `openzaya.serve.app.create_app` is the ASGI application alone.
"""
