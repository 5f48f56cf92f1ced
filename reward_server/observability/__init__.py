"""What can be seen of a running server: metrics, records, logs and traces.

Owns the names and formats that users read. Decides nothing: no call depends on what happens here.
"""
