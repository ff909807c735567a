"""An HTTP/1.1 connection of a server, from the socket to the ASGI application and back.

``states`` has the states and their rules, ``head`` and ``body`` read requests (both without I/O),
``protocol`` is the connection, ``cycle`` one request of it and its response, ``watch`` the one
timer over all connections, and ``capacity`` says how many there may be.
"""
