"""The committed tables of what the compiler made of the attention kernels.

Figures in them may only fall. A field that lists a figure for each split length of decode
holds `8:3.05 16:2.28`: pages of a split, and the figure.
"""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent


def figures_of(field):
    """The figures in a field, in order."""
    return [float(part.split(":")[-1]) for part in str(field).split()]


class Table:
    """`falling` are the fields that are compared."""

    def __init__(self, name, of, fields, keys, falling):
        self.path, self.of, self.fields = ROOT / "kernels" / name, of, fields.split()
        self.keys, self.falling = keys, falling

    def key(self, row):
        return tuple(row[k] for k in self.keys)

    def read(self):
        if not self.path.is_file():
            return []
        lines = [line for line in self.path.read_text().splitlines() if not line.startswith("#")]
        fields = lines[0].split("\t")
        return [dict(zip(fields, line.split("\t"))) for line in lines[1:]]

    def write(self, rows):
        text = f"# Written by scripts/sass-check --update: what the compiler made of the {self.of} kernels.\n"
        for row in [dict(zip(self.fields, self.fields))] + sorted(rows, key=self.key):
            text += "\t".join(str(row.get(f, "-")) for f in self.fields) + "\n"
        self.path.write_text(text)

    def compare(self, rows, archs, failures):
        """Nothing may be worse than in the table, and nothing missing from either."""
        old = {self.key(r): r for r in self.read() if r["arch"][3:] in archs}
        for row in rows:
            name = " ".join(self.key(row))
            before = old.pop(self.key(row), None)
            if before is None:
                failures.append(f"{name}: not in {self.path.name}; add it with --update")
                continue
            for field in self.falling:
                if before.get(field, "-") == "-":
                    failures.append(f"{name}: {field} is not in {self.path.name}; add it with --update")
                    continue
                # By place: with longer splits, the shortest of them are compared.
                for was, now in zip(figures_of(before[field]), figures_of(row[field])):
                    failures.check(now <= was, f"{name}: {field} rose from {before[field]} to {row[field]}")
            failures.check(row["blocks"] >= int(before["blocks"]), f"{name}: blocks fell from {before['blocks']} to {row['blocks']}")
        failures.extend(f"{' '.join(k)}: in {self.path.name}, but there is no such kernel" for k in old)


ELEMENTS = Table(
    "sass.tsv",
    "decode",
    "kernel arch registers shared blocks instructions longest elements slots"
    " wavefronts per_kib threads splits trips outside items item_slots",
    ["kernel", "arch"],
    ["slots", "shared", "per_kib", "outside", "item_slots"],
)
PRODUCTS = Table(
    "sass_products.tsv",
    "prefill and score",
    "kernel arch pages registers shared blocks instructions longest products slots wavefronts per_product",
    ["kernel", "arch", "pages"],
    ["slots", "shared", "per_product"],
)
