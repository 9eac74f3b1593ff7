#!/usr/bin/env python3
"""What HTTP adds to the engine: streaming clients against a running ds-serve of this machine.

    ds-bench make-model --shape llama:layers=12,d=1024,ff=2816,heads=16,kv=4,vocab=32000 -o m
    echo '{"models": [{"name": "m", "folder": "m"}], "limits": {"batch": 64}}' >fleet.json
    ds-serve --fleet fleet.json --port 8000 & bench/serve_http.py http://127.0.0.1:8000 $!

Prints requests and tokens per second; of the time to the first token what lies between the client's and the engine's; and how much of the
server's processor time its two busiest threads have, which compute (the engine's, and OpenMP's on two cores)."""
import argparse, http.client, json, os, threading, time, urllib.parse


def processor_ms(pid):
    out = {}
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/stat") as f: fields = f.read().rsplit(")", 1)[1].split()
        out[thread] = (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("pid", type=int)
    for name, value in (("requests", 128), ("clients", 64), ("prompt", 64), ("answer", 64)): parser.add_argument(f"--{name}", type=int, default=value)
    o = parser.parse_args()
    address = urllib.parse.urlsplit(o.url)
    connect = lambda: http.client.HTTPConnection(address.hostname, address.port, timeout=600)
    connection = connect()
    connection.request("GET", "/v1/models")
    model = json.load(connection.getresponse())["data"][0]["id"]
    lock, todo, added, tokens, failed = threading.Lock(), iter(range(o.requests)), [], [0], [0]

    def client():
        connection = connect()
        while (i := next_one()) is not None:
            body = {"model": model, "prompt": [(i * 131 + j * 7) % 997 for j in range(o.prompt)], "max_tokens": o.answer, "temperature": 0, "ignore_eos": True, "stream": True,
                    "return_token_ids": True, "stream_options": {"include_usage": True}}
            start, first, events = time.perf_counter(), None, []
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            while line := response.readline():
                if not line.startswith(b"data: "): continue
                first = first or time.perf_counter()
                events.append(line[6:].strip())
            with lock:
                if not events or events[-1] != b"[DONE]":
                    failed[0] += 1
                    continue
                tokens[0] += json.loads(events[-2])["usage"]["completion_tokens"]
                added.append(1e3 * (first - start) - json.loads(events[-3])["droidspeak"]["ttft_ms"])

    def next_one():
        with lock: return next(todo, None)

    before, start = processor_ms(o.pid), time.perf_counter()
    threads = [threading.Thread(target=client) for _ in range(o.clients)]
    for t in threads: t.start()
    for t in threads: t.join()
    seconds = time.perf_counter() - start
    used = sorted((ms - before.get(t, 0) for t, ms in processor_ms(o.pid).items()), reverse=True)
    added.sort()
    at = lambda share: added[min(len(added) - 1, int(share * len(added)))]
    print(f"{o.requests} requests of {o.prompt} + {o.answer} tokens, {o.clients} clients: {o.requests / seconds:.2f} requests/s, {tokens[0] / seconds:.0f} tokens/s, {failed[0]} failed")
    print(f"TTFT of the client less the engine's: {at(.5):.2f} ms median, {at(.9):.2f} ms of 90 %, {at(.99):.2f} ms of 99 %")
    print(f"processor time of all threads but the two busiest: {100 * sum(used[2:]) / sum(used):.1f} %")


main()
