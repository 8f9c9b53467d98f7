"""A WSGI application that says which generation answers."""

import os


def app(environ, start_response):
    body = f"generation {os.environ['GENERATION']}\n".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
