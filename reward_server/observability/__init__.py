"""What a server shows of itself: metrics, spans, logs and records of scored groups.

Owns the names and formats that users read, and the executor that observes a scorer. Decides nothing: no score depends
on what happens here.
"""
