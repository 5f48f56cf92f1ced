"""The fault suite: real processes on loopback, broken in every way that we know of."""
