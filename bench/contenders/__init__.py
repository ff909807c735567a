"""The servers under measurement: Reattach, and those that it is compared with."""
