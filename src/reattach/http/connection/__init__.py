"""An HTTP/1.1 connection of a server, from the socket to the ASGI application and back.

``states`` defines the states and their rules, ``head`` and ``body`` parse requests without I/O,
``protocol`` is the connection, ``cycle`` one request with its response, ``watch`` the timer of all
connections, ``capacity`` their limits, and ``refusals`` those beyond them.
"""
