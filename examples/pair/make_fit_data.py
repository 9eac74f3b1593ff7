#!/usr/bin/env python3
"""Writes documents of the pair's kinds for fitting the maps of aligned cuts, one JSON line each: fresh ones, neither trained on nor held out to
be asked about. They have no questions worth asking (ds-profile reads the contexts only).

    make_fit_data.py                                                the files in fit/: notes.jsonl and code.jsonl
    make_fit_data.py --kind words --documents 50 -o words.jsonl     the words of the notes in no order at all"""
import argparse
import json
import os
import random

from tasks import CITIES, COLORS, FUNCTIONS, ITEMS, JOBS, NAMES, PARAMETERS, PLACES, make_document

HERE = os.path.dirname(os.path.abspath(__file__))
WORDS = NAMES + ITEMS + COLORS + CITIES + JOBS + PLACES + FUNCTIONS + PARAMETERS


def documents(kind, count, sizes, seed):
    rng = random.Random(f"{seed}-fit-{kind}")
    for i in range(count):
        size = sizes[i % len(sizes)]
        if kind == "words":
            yield "notes_qa", " ".join(rng.choices(WORDS, k=size * 20))
        else:
            yield ("module_code" if kind == "code" else "notes_qa"), make_document(rng, size, kind == "code")[0]


def write(path, kind, count, sizes, seed):
    with open(path, "w") as f:
        for task, text in documents(kind, count, sizes, seed):
            f.write(json.dumps(dict(context=text, input="-", answers=["-"], dataset=task)) + "\n")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kind", choices=["notes", "code", "words"], help="only this one (default: notes and code, into fit/)")
    p.add_argument("--documents", type=int, default=48)
    p.add_argument("--sizes", type=int, nargs="+", default=[8, 16], help="people or functions of a document, in turn")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("-o", "--output")
    args = p.parse_args()
    if args.kind and not args.output: p.error("--kind needs -o")
    for kind in [args.kind] if args.kind else ["notes", "code"]:
        write(args.output or os.path.join(HERE, "fit", f"{kind}.jsonl"), kind, args.documents, args.sizes, args.seed)


if __name__ == "__main__":
    main()
