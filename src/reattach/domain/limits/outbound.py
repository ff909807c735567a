"""Limits of requests to URLs that clients name: callbacks and images."""

from typing import Final

IMAGE_FETCH_SECONDS: Final = 10.0
"""The time limit for fetching one image, for a provider that does not fetch it itself."""

IMAGES_FETCH_SECONDS: Final = 30.0
"""The time limit for all images of a turn.

Then missing images of the history are left out, and missing images of the turn fail it.
"""

IMAGE_REDIRECTS: Final = 3
"""Redirects that are followed for an image; each address is checked like the first."""

IMAGES_FETCHED_AT_ONCE: Final = 4
"""Images that a turn fetches concurrently."""

IMAGES_FETCHED_BYTES: Final = 32 * 1024 * 1024
"""The bound on a turn's fetched images and on an engine's cache; providers accept no more."""

OUTBOUND_ADDRESSES: Final = 4
"""Addresses of a host that one request tries."""

OUTBOUND_LOOKUPS: Final = 128
"""Concurrent name look-ups, each in a thread that cannot be interrupted."""

MAX_CALLBACK_URL_CHARS: Final = 2048
"""A callback URL: the length that common servers accept."""

CALLBACK_BODY_BYTES: Final = 1024 * 1024
"""The body of a callback; a larger answer is omitted and can be fetched from the server."""

CALLBACK_SECONDS: Final = 10.0
"""How long a receiver may take, from DNS look-up to response status."""

CALLBACK_LEASE_SECONDS: Final = 60.0
"""How long a process owns a callback before another may send it; far longer than one takes."""

CALLBACKS_AT_ONCE: Final = 64
"""Concurrent callbacks of a process: enough for many tenants with receivers that hang."""

CALLBACK_LOOK_SECONDS: Final = 2.0
"""Interval of the search for callbacks that are due again or were abandoned by a process."""

CALLBACK_RETRY_SECONDS: Final = 2.0
"""The wait before the first retry of a callback; it doubles with each failure."""

CALLBACK_MAX_RETRY_SECONDS: Final = 900.0
"""The maximum of that wait."""

CALLBACK_GIVE_UP_SECONDS: Final = 24 * 3600.0
"""How long after the end of its run a callback is still retried."""

CALLBACKS_PER_TENANT: Final = 8
"""Concurrent callbacks of a tenant, so that its hanging receivers delay only its own."""

CALLBACKS_PER_RECEIVER: Final = 4
"""Concurrent callbacks of a tenant to one host, so that a hanging one leaves slots for others."""

CALLBACK_BREAKER_FAILURES: Final = 3
"""Unanswered callbacks in a row after which a host is skipped for a while."""

CALLBACK_BREAKER_SECONDS: Final = 30.0
"""The first interval of skipping; it doubles with each further unanswered callback."""

CALLBACK_BREAKERS: Final = 500
"""Silent hosts that a process remembers, which also bounds the query that excludes them."""

CALLBACK_SECRET_OVERLAP_SECONDS: Final = 24 * 3600.0
"""The time for which a replaced secret still signs beside the new one, for receivers to switch."""
