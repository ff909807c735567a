"""Stream tokens for web pages: their routes, and the limits of what a page may send with one."""
