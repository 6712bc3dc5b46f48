"""What an item of decode costs outside its steady loops, and what a turn asks of shared
memory, from machine code that sass_loop.py has read.

*Outside.* An item is a turn of the outermost loop that holds products (fetch, walk,
queries, first copies, merge, write), and a run of its stream is a turn of the next one
within. Of the ways round the item's loop the one is taken that passes the most products,
copies and stores, to global or shared memory, and of those the shortest: so what only one
lane does counts (it keeps its warp waiting), and turning the queries of relocated runs
does not. Of this way all instructions count that lie in no product loop; other inner
loops count once. Then the runs that an item meets and has no pages of, RUNS − 1 of them:
the shortest ways round the loop over runs that pass no product, no copy and no barrier of
the block, but most stores.

*Shared memory.* One wavefront moves 128 bytes, a cycle a multiprocessor. An access of a
warp takes one for each 4 bytes a lane: 4 for LDS.128, STS.128 and the 16-byte copies
(LDGSTS), which write 512 bytes, 2 for 64 bits, 1 else; LDSM takes one a matrix. No access
is taken to have bank conflicts, and none to be narrower than its lanes.
"""

import re

from sass_loop import count, innermost, loops_with_products

# An item has one, or knows of one only (kernels/attention/plan.cu); rotated forms look at it
# twice.
RUNS = 2


def fullest(code):
    return count(code, "HMMA", "LDGSTS", "STS", "STG"), -len(code)


def emptiest(code):
    return -count(code, "HMMA", "LDGSTS", "BAR"), count(code, "STS", "STG"), -len(code)


def outside(graph):
    """Instructions of an item outside its product loops; None if no loop is over items
    that holds one over runs."""
    loops = loops_with_products(graph)
    inner = innermost(loops)
    outer = [(h, body) for h, body in loops.items() if h not in inner]
    items = [(h, body) for h, body in outer if not any(body < other for _, other in outer)]
    if len(items) != 1:
        return None
    header, body = items[0]
    runs = [(h, b) for h, b in outer if b < body and all(i <= b for i in inner.values())]
    if not runs:
        return None
    steady = {id(x) for b in set().union(*inner.values()) for x in graph.instructions(b)}
    way = [x for x in graph.turn(header, body, fullest) if id(x) not in steady]
    run = max(runs, key=lambda loop: len(loop[1]))
    return len(way) + (RUNS - 1) * len(graph.turn(*run, emptiest))


def wavefronts(code):
    """Wavefronts of shared memory that a warp's instructions take."""
    total = 0
    for x in code:
        if x.opcode == "LDSM":
            total += int(re.search(r"\.M\w+\.(\d)", x.name + ".1").group(1))
        elif x.opcode in ("LDS", "STS", "LDGSTS", "ATOMS"):
            total += 4 if ".128" in x.name else 2 if ".64" in x.name else 1
    return total
