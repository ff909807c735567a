"""The messages in context of threads, decoded at once and kept between turns."""
