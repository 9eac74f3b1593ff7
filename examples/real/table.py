"""Prints the ways of several profiles side by side, as a Markdown table: loss in points, and divergence in nats per
reference token with its standard error over contexts.

    python3 table.py base-records.json prose-records.json
"""

import argparse
import json
import re

DEFAULT = [
    "full reuse",
    "recompute 15-24",
    "recompute 10-24",
    "recompute 5-24",
    "recompute 0-24",
    "recompute 0-19",
    "restore 0-29",
]


def cell(way):
    if way is None:
        return ""
    divergence = way.get("divergence", {})
    value = f"{way['loss']['mean']:.1f}"
    if divergence.get("mean") is not None:
        value += f"; {divergence['mean']:.3f} ± {divergence.get('stderr', 0):.3f}"
    return value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profiles", nargs="+", help="quality.json files that ds-profile wrote")
    parser.add_argument("--ways", nargs="+", default=DEFAULT, help="regular expressions of names; those behind aligned cuts stand in lines of their own")
    parser.add_argument("--all", action="store_true", help="all ways")
    args = parser.parse_args()
    profiles = [json.load(open(path)) for path in args.profiles]
    tables = [{way["way"]: way for way in profile["ways"]} for profile in profiles]
    names = list(dict.fromkeys(name for table in tables for name in table))
    if not args.all:
        wanted = re.compile("|".join(f"(?:{way})(?: aligned)?" for way in args.ways))
        names = [name for name in names if wanted.fullmatch(name)]
    pairs = [f"{p['pair']['sender']['name']} → {p['pair']['receiver']['name']}" for p in profiles]
    print("| loss; divergence | " + " | ".join(pairs) + " |")
    print("|---|" + "---|" * len(pairs))
    print("| questions, contexts | " + " | ".join(f"{p['items']}, {p['contexts']}" for p in profiles) + " |")
    print("| the receiver's own score | " + " | ".join(f"{p['receiver_score']:.1f}" for p in profiles) + " |")
    for name in names:
        print(f"| {name} | " + " | ".join(cell(table.get(name)) for table in tables) + " |")


if __name__ == "__main__":
    main()
