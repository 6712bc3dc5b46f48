"""Reads what nvdisasm prints and finds the main loop of a kernel.

The usual path of a loop is the shortest way round it among those that meet the most
tensor core products (HMMA) and asynchronous copies (LDGSTS). So it holds what each
turn must do, the copy of a later tile included, and leaves out what a turn does now
and then: masks, rescaling, reading the next block numbers, and code for diverged warps.
"""

import re

INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]+\*/\s+(?:\{\s*)?(@!?U?P[T0-9]+\s+)?([A-Z][A-Z0-9_.]*)(.*?);")
LABEL = re.compile(r"(\.L_x_\d+):")
TARGET = re.compile(r"`\((\.L_x_\d+)\)")


class Instruction:
    def __init__(self, guard, name, rest):
        self.guard = bool(guard)
        self.name = name
        self.opcode = name.split(".")[0]
        self.rest = rest
        target = TARGET.search(rest)
        self.target = target and target.group(1)


def functions(text):
    """(name, instructions, {label: index of the instruction behind it}) of each kernel."""
    for section in re.split(r"^//-+ \.text\.", text, flags=re.M)[1:]:
        name = section.split(None, 1)[0]
        code, labels = [], {}
        for line in section.splitlines():
            if found := LABEL.match(line):
                labels[found.group(1)] = len(code)
            elif found := INSTRUCTION.match(line):
                code.append(Instruction(*found.groups()))
        yield name, code, labels


def successors(code, labels):
    """Of each instruction, the instructions that may follow it."""
    joins, following = {}, []
    for i, x in enumerate(code):
        after, target = [i + 1], labels.get(x.target)
        if x.opcode == "BSSY":
            joins[x.rest.split(",")[0].strip()] = target
        elif x.opcode == "BSYNC":  # diverged lanes meet where the BSSY before says
            after = [joins.get(x.rest.strip(), i + 1)] + ([i + 1] if x.guard else [])
        elif x.opcode in ("EXIT", "RET", "BRX", "JMP"):
            after = [i + 1] if x.guard else []
        elif x.name.startswith("BRA.CONV"):  # lanes are together, and go on there
            after = [target]
        elif x.opcode == "CALL" and target is not None:  # a jump to a label of this kernel
            after = [target] + ([i + 1] if x.guard else [])
        elif x.opcode == "BRA" and not x.name.startswith("BRA.DIV"):
            # A second predicate may stand before the target.
            conditional = x.guard or not x.rest.strip().startswith("`")
            after = [target] + ([i + 1] if conditional else [])
        following.append([a for a in after if a is not None and a < len(code)])
    return following


class Graph:
    """Basic blocks reachable from the first: [first, last) instructions and edges."""

    def __init__(self, code, labels):
        following = successors(code, labels)
        starts = {0} | set(labels.values())
        for i, after in enumerate(following):
            if after != [i + 1]:
                starts |= set(after) | {i + 1}
        starts = sorted(s for s in starts if s < len(code))
        self.code = code
        self.ends = dict(zip(starts, starts[1:] + [len(code)]))
        self.next = {s: following[end - 1] for s, end in self.ends.items()}
        self.order = self.reverse_postorder()
        self.before = {b: [] for b in self.order}
        for b in self.order:
            for a in self.next[b]:
                self.before[a].append(b)
        self.dominators = self.find_dominators()

    def instructions(self, block):
        return self.code[block : self.ends[block]]

    def reverse_postorder(self):
        seen, order, stack = {0}, [], [(0, iter(self.next[0]))]
        while stack:
            block, rest = stack[-1]
            for a in rest:
                if a not in seen:
                    seen.add(a)
                    stack.append((a, iter(self.next[a])))
                    break
            else:
                order.append(block)
                stack.pop()
        return order[::-1]

    def find_dominators(self):
        every = set(self.order)
        dominators = {b: every for b in self.order}
        dominators[0] = {0}
        changed = True
        while changed:
            changed = False
            for b in self.order[1:]:
                new = set.intersection(*(dominators[p] for p in self.before[b])) | {b}
                if new != dominators[b]:
                    dominators[b], changed = new, True
        return dominators

    def loops(self):
        """{header: blocks} of all natural loops."""
        loops = {}
        for b in self.order:
            for header in self.next[b]:
                if header in self.dominators[b]:
                    body, todo = loops.setdefault(header, {header}), [b]
                    while todo:
                        block = todo.pop()
                        if block not in body:
                            body.add(block)
                            todo += self.before[block]
        return loops

    def turn(self, header, body, weight):
        """The way round a loop whose blocks weigh most; `weight` gives a tuple for the
        instructions of a block. Inner loops are passed once."""
        weigh = lambda block: weight(self.instructions(block))
        best = {header: (weigh(header), None)}
        for b in self.order:
            if b not in body or b == header:
                continue
            ways = [p for p in self.before[b] if p in best and b not in self.dominators[p]]
            if ways:
                way = max(ways, key=lambda p: best[p][0])
                best[b] = (tuple(x + y for x, y in zip(best[way][0], weigh(b))), way)
        block = max((b for b in best if header in self.next[b]), key=lambda b: best[b][0])
        blocks = []
        while block is not None:
            blocks.append(block)
            block = best[block][1]
        return [x for b in reversed(blocks) for x in self.instructions(b)]


def count(code, *opcodes):
    return sum(x.opcode in opcodes for x in code)


def shortest(code):
    """Most products and copies, then fewest instructions."""
    return count(code, "HMMA", "LDGSTS"), -len(code)


def longest(code):
    """Most products and copies, then most instructions."""
    return count(code, "HMMA", "LDGSTS"), len(code)


def loops_with_products(graph):
    """{header: blocks} of the loops that hold HMMAs, outer ones too."""
    holds = lambda body: any(count(graph.instructions(b), "HMMA") for b in body)
    return {header: body for header, body in graph.loops().items() if holds(body)}


def innermost(loops):
    return {h: body for h, body in loops.items() if not any(other < body for other in loops.values())}


def product_loops(graph):
    """(shortest turn, longest turn) of each innermost loop that holds HMMAs."""
    return [
        (graph.turn(header, body, shortest), graph.turn(header, body, longest))
        for header, body in innermost(loops_with_products(graph)).items()
    ]
