"""This library timed beside others: ``fastbp compare`` and ``fastbp roofline``. Nothing of the core imports it.

`comparisons` is the table of what is compared; each entry makes its cases in a module of its own, beside `peers` and
`gpu_peers`. `measure` times a case by its `clocks`, and `report` prints what comes out. `roofline` stands alone.
"""
