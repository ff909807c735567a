"""Commands that ask a running server over HTTP, on this machine or another one."""
