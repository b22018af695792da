#!/usr/bin/env python3
"""schedules.txt: what the published code makes of sample schedules, for tests/t_pair.c.

    schedules.py CHECKOUT           the directory of the published UniCon code; without it nothing is done

Only parse_schedule of its utils/utils.py is taken and run, so that none of its packages have to be there. The file is
words between blanks:

    schedule TEXT               a line: the schedule, in the list form or as noise levels; a long list goes on in lines
                                that begin with blanks
    N STEPS ROWS                what follows is of that many steps
    input FIRST MARKS           per input: its step in row 0, then a mark per row: + its index is higher by one in the
                                next row, . it is the same; behind the last row every input takes a step, so + there
    guide MARKS                 0 or 1 per row
    starts N I I I ..           int((1 - A) * (N - 1)) of A = 0, 0.01, .. 1

Marks are broken into pieces of at most 100."""
import ast
import os
import random
import sys

STEPS = [1, 2, 7, 10, 20, 50, 100]


def published(checkout):
    path = os.path.join(checkout, "utils", "utils.py")
    with open(path, encoding="utf-8") as f:
        tree = ast.parse(f.read())
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "parse_schedule"]
    space = {}
    exec(compile(tree, path, "exec"), space)
    return space["parse_schedule"]


def pieces(marks):
    return "\n    ".join(marks[i:i + 100] for i in range(0, len(marks), 100))


def write(f, text, segments, parse):
    f.write("schedule %s\n" % (text if len(text) <= 100 else text.replace("],", "],\n    ")))
    for N in STEPS:
        rows = parse(segments, N)
        f.write("N %d %d\n" % (N, len(rows)))
        for k in range(len(rows[0]) - 1):
            rises = [b[k] - a[k] for a, b in zip(rows, rows[1:])]
            assert set(rises) <= {0, 1}
            f.write("input %d %s\n" % (rows[0][k], pieces("".join(".+"[r] for r in rises) + "+")))
        f.write("guide %s\n" % pieces("".join(str(int(row[-1])) for row in rows)))


def list_text(rng, segments):
    """The same list as people write it: with and without blanks, outer brackets, False for 0."""
    text = str(segments)[1:-1]
    if rng.random() < 0.3:
        text = "[%s]" % text
    if rng.random() < 0.5:
        text = text.replace(" ", "")
    return text


def level_text(noise):
    """noise: per segment, per input (from, to) in hundredths."""
    def one(name, a, b):
        return "%s=%s" % (name, a / 100 if a == b else "%s:%s" % (a / 100, b / 100))
    return " | ".join(" ".join(one(name, a, b) for name, (a, b) in zip(["x", "y", "y2"], seg)) for seg in noise)


def random_levels(rng, n_input, n_segment):
    """Per segment, per input (from, to) in hundredths, rising, continuous; the last at 100 or not."""
    walks = []
    for _ in range(n_input):
        cuts = sorted(rng.choice([0, 100, rng.randint(0, 100), rng.randint(0, 100)]) for _ in range(n_segment + 1))
        if rng.random() < 0.7:
            cuts[-1] = 100
        walks.append(cuts)
    return [[(w[i], w[i + 1]) for w in walks] for i in range(n_segment)]


def main():
    if len(sys.argv) != 2:
        print("schedules.py: needs the directory of the published UniCon code as its argument: schedules.txt is left"
              " as it is", file=sys.stderr)
        return
    parse = published(sys.argv[1])
    rng = random.Random(20241010)
    fixed = [
        [[(0, 1), (1, 1), 0]], [[(1, 1), (0, 1), 0]], [[(0, 1), (0, 1), 0]], [[(1, 1), (1, 1), 0]],
        [[(0, 1), (0.3, 1), 0]], [[(0.5, 1), (0, 1), 0]], [[(0.9, 1), (0, 1), 0]], [[(0.2, 1), (0.5, 1), 0]],
        [[(0, 0.5), (0, 0), 0], [(0.5, 1), (0, 1), 0]], [[(0, 1), (1, 1), (1, 1), 0]], [[(0, 1), (0, 1), 1]],
        [[(0, 1), (0, 0), True], [(1, 1), (0, 1), False]], [[(0, 0.6), (0, 0.6), 1], [(0.6, 1), (0.6, 1), 0]],
        [[(0, 0), (0, 0), 0], [(0, 1), (0, 1), 1]], [[(0.25, 0.25), (0.5, 0.75), 0]], [[(1, 1), (1, 1), (0, 1), 1]],
    ]
    here = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(here, "schedules.txt"), "w", encoding="ascii") as f:
        for segments in fixed:
            write(f, list_text(rng, segments), segments, parse)
        for i in range(24):                             # the list form
            levels = random_levels(rng, 2 + i % 2, 1 + i % 4)
            segments = [[(a / 100, b / 100) for a, b in seg] + [rng.choice([0, 1, False, True])] for seg in levels]
            write(f, list_text(rng, segments), segments, parse)
        for i in range(24):                             # noise levels A, which the published code is given as 1 - A
            noise = [[(100 - a, 100 - b) for a, b in seg] for seg in random_levels(rng, 2 + i % 2, 1 + i % 3)]
            segments = [[(1 - a / 100, 1 - b / 100) for a, b in seg] + [0] for seg in noise]
            write(f, level_text(noise), segments, parse)
        for N in STEPS + [25, 30, 40, 64, 101, 999, 1000]:
            starts = [parse([[(1 - i / 100, 1), 0]], N)[0][0] for i in range(101)]
            f.write("starts %d" % N)
            for i in range(0, 101, 20):
                f.write("\n    " + " ".join(map(str, starts[i:i + 20])))
            f.write("\n")


if __name__ == "__main__":
    main()
