"""What Reattach is compared with: what the machine can do, what is common, and what others offer.

Those that are made here serve one small interface: ``POST /ended/RUN?events=N``,
``POST /paced/RUN?events=N&rate=N&phase_ns=N&gate=FILE``, ``GET /stream/RUN?after=CURSOR``, and a
``GET /empty`` that is answered with nothing.
"""
