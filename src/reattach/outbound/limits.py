"""Bounds of requests to URLs that clients name, in addition to those in ``domain.limits``."""

from typing import Final

IMAGE_FETCH_SECONDS: Final = 10.0
"""The time limit for fetching one image, for a provider that does not fetch it itself."""

IMAGES_FETCH_SECONDS: Final = 30.0
"""The time limit for all images of a turn, which then continues without the rest."""

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

CALLBACKS_PER_TENANT: Final = 8
"""Concurrent calls of a tenant, so that its hanging receivers delay only its own calls."""

CALLBACKS_PER_RECEIVER: Final = 4
"""Concurrent calls of a tenant to one host, so that a hanging one leaves slots for others."""

CALLBACK_BREAKER_FAILURES: Final = 3
"""Unanswered calls in a row after which a host is skipped for a while."""

CALLBACK_BREAKER_SECONDS: Final = 30.0
"""The first interval of skipping; it doubles with each further unanswered call."""

CALLBACK_BREAKERS: Final = 500
"""Silent hosts that a process remembers, which also bounds the query that excludes them."""

CALLBACK_SECRET_OVERLAP_SECONDS: Final = 24 * 3600.0
"""The time for which a replaced secret still signs beside the new one, for receivers to switch."""
