"""Bounds of requests to URLs that clients name, beside those in ``limits``."""

from typing import Final

IMAGE_FETCH_SECONDS: Final = 10.0
"""How long an image by URL may take to be fetched for a provider that does not do so itself."""

IMAGES_FETCH_SECONDS: Final = 30.0
"""How long all of them may take together before a turn goes on without the rest."""

IMAGE_REDIRECTS: Final = 3
"""Redirects of such an image that are followed; each address is checked like the first."""

IMAGES_FETCHED_AT_ONCE: Final = 4
"""Images that a turn fetches at a time."""

IMAGES_FETCHED_BYTES: Final = 32 * 1024 * 1024
"""All fetched images of a turn, and those that an engine keeps; providers take no more."""

OUTBOUND_ADDRESSES: Final = 4
"""Addresses of a host that one request to a URL of a client tries."""

OUTBOUND_LOOKUPS: Final = 128
"""Names that are being looked up at a time, each in a thread that nobody can stop."""

CALLBACKS_PER_TENANT: Final = 8
"""Calls of one tenant at a time: its receivers that hang hold up its own calls alone."""

CALLBACKS_PER_RECEIVER: Final = 4
"""Calls of one tenant to one host at a time: one that hangs leaves places for others."""

CALLBACK_BREAKER_FAILURES: Final = 3
"""Calls in a row without an answer, after which a host is left alone for a while."""

CALLBACK_BREAKER_SECONDS: Final = 30.0
"""How long that is at first; it doubles with each further call without an answer."""

CALLBACK_BREAKERS: Final = 500
"""Silent hosts that a process remembers; the statement that leaves them out is bounded too."""

CALLBACK_SECRET_OVERLAP_SECONDS: Final = 24 * 3600.0
"""How long a replaced secret still signs beside the new one, so that receivers can follow."""
