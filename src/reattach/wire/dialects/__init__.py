"""The forms in which clients of other ecosystems read a run. No dialect knows another one."""
