"""``make bench``: what the product costs, beside what one would use instead.

Here: the measurements, their targets, the compared tools. Not here: anything the product needs to
run; the compared tools are the extra ``bench``, imported only by the way that uses them.

Every comparison is made on one server, in one run, in rounds: each way takes its turn, from a state
that was prepared outside the clock, and a ratio is the median of the rounds' ratios.
"""
