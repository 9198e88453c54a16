"""The search for a good plan.

Its inner loops are compiled, so numpy and numba are known here and nowhere else in the core
(`docs/adr/0025`): arrays as arguments of pure functions, no clock and no randomness but a seed's.
"""

from ravnest_p2p.core.planning.search.compiled import keep_compiled

keep_compiled()
