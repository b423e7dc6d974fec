"""The benches of ddnkit: its parts against named peers, on the same inputs in one run.

One bench a file, found by the entry points in the group ``ddnkit.benches``; run them with
``ddnkit bench NAME``. How they measure is `ddnkit.bench.Comparison`.
"""
