"""Two answers of ds-run --json: to a whole text as a prompt, and to the text cut into context and prompt."""
import json
import sys

full, joined = (json.load(open(path)) for path in sys.argv[1:3])
print(joined["cache"]["status"])
tokens = full["context_tokens"] + len(full["prompt_token_ids"]), joined["context_tokens"] + len(joined["prompt_token_ids"])
tail = joined["prompt_token_ids"]
print("same tokens" if tokens[0] == tokens[1] and full["prompt_token_ids"][-len(tail):] == tail else f"other tokens: {full} {joined}")
print("same answer" if full["output_token_ids"] == joined["output_token_ids"] else f"another answer: {full} {joined}")
print("fewer context tokens than the entry has" if 0 < joined["context_tokens"] < joined["entry_tokens"] else f"no border: {joined}")
