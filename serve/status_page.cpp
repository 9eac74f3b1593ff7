#include "serve/status_page.h"

namespace ds {

std::string_view status_page() {
  return R"page(<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>ds-serve</title>
<style>
  :root { color-scheme: light dark; --ink: #1d2733; --soft: #5c6b7a; --line: #d5dce3; --ground: #f6f8fa; --card: #fff; --mark: #0b6bcb; --bad: #b3261e; --good: #1b7f4b; }
  @media (prefers-color-scheme: dark) {
    :root { --ink: #e3e9ef; --soft: #9aa8b6; --line: #33404d; --ground: #12181f; --card: #1a222b; --mark: #6fb3ff; --bad: #ff8a80; --good: #6fd39b; }
  }
  * { box-sizing: border-box; }
  body { margin: 0 auto; padding: 16px; max-width: 1200px; background: var(--ground); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
  h1 { font-size: 1.3rem; margin: 0 0 4px; }
  h2 { font-size: 1.05rem; margin: 24px 0 8px; }
  p { margin: 0 0 8px; color: var(--soft); }
  .tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 8px; }
  .tile { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 8px 12px; }
  .tile b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
  .tile span { color: var(--soft); font-size: .85rem; }
  .scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 6px; }
  table { border-collapse: collapse; width: 100%; font-size: .9rem; }
  th, td { text-align: left; padding: 6px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; vertical-align: top; }
  td.wide { white-space: normal; min-width: 220px; }
  td small { display: block; color: var(--soft); }
  tr:last-child td { border-bottom: 0; }
  th { color: var(--soft); font-weight: 600; }
  td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
  form { margin: 0 0 12px; }
  input, button { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 4px 10px; max-width: 60%; }
  .bad { color: var(--bad); } .good { color: var(--good); }
  .bar { display: flex; width: 110px; height: 10px; background: var(--line); border-radius: 3px; overflow: hidden; margin-top: 5px; }
  .bar i { display: block; height: 100%; }
  .q { background: var(--soft); } .f { background: var(--mark); } .d { background: var(--good); }
  .key i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin: 0 4px 0 10px; }
</style>
</head>
<body>
<h1>ds-serve</h1>
<p id="state" role="status">reading /status ...</p>
<form id="ask" hidden><label>API key <input id="key" type="password" autocomplete="off" required></label> <button>show</button></form>
<div class="tiles" id="tiles"></div>
<h2>Models</h2>
<div class="scroll"><table id="models"></table></div>
<h2>Plans</h2>
<div class="scroll"><table id="plans"></table></div>
<p id="registered" style="overflow-wrap: anywhere; margin-top: 8px" hidden></p>
<h2>Last answers</h2>
<p class="key"><i class="q"></i>queue <i class="f"></i>to the first token <i class="d"></i>to the last</p>
<div class="scroll"><table id="recent"></table></div>
<script>
"use strict";
const $ = id => document.getElementById(id);
const el = (tag, text, cls) => { const e = document.createElement(tag); if (text !== undefined && text !== null) e.textContent = text; if (cls) e.className = cls; return e; };
const n = (x, d = 0) => x === null || x === undefined ? "-" : Number(x).toLocaleString("en", { maximumFractionDigits: d, minimumFractionDigits: d });
const bytes = x => { const u = ["B", "KiB", "MiB", "GiB", "TiB"]; let i = 0; while (x >= 1024 && i < 4) { x /= 1024; ++i; } return n(x, i ? 1 : 0) + " " + u[i]; };
function table(id, head, rows) {
  const t = $(id), body = el("tbody"), top = el("tr"), thead = el("thead");
  head.forEach(h => { const th = el("th", h.replace(/^#/, ""), h.startsWith("#") ? "n" : ""); th.scope = "col"; top.append(th); });
  thead.append(top);
  rows.forEach(r => { const tr = el("tr"); r.forEach((c, i) => tr.append(c instanceof Node ? c : el("td", c, head[i].startsWith("#") ? "n" : ""))); body.append(tr); });
  if (!rows.length) { const tr = el("tr"), td = el("td", "none yet"); td.colSpan = head.length; tr.append(td); body.append(tr); }
  t.replaceChildren(thead, body);
}
let before = null;
function show(s) {
  const e = s.engine, dt = before ? Math.max(1, s.time - before.time) : 0, rate = k => before ? (e[k] - before.engine[k]) / dt : null;
  const up = s.time - s.started;
  $("state").textContent = (s.draining ? "draining; " : "") + "up for " + (up < 3600 ? Math.floor(up / 60) + " min" : n(up / 3600, 1) + " h") + (s.left_out.length ? "; left out: " + s.left_out.join("; ") : "");
  $("state").className = s.left_out.length || s.draining ? "bad" : "";
  const tiles = [["running", n(e.running)], ["waiting", n(e.waiting)], ["answers", n(e.finished)], ["failed, refused, cancelled", n(e.failed) + ", " + n(e.refused) + ", " + n(e.cancelled)],
    ["tokens generated per second", n(rate("new_tokens"), 1)], ["tokens of prompts per second", n(rate("prompt_tokens"), 1)],
    ["entries hit, repaired, missed", n(e.entry_hits) + ", " + n(e.entry_repairs) + ", " + n(e.entry_misses)], ["entries published", n(e.published) + (e.publications_open ? " (" + e.publications_open + " open)" : "")],
    ["link, as measured", e.link_rate ? bytes(e.link_rate) + "/s" : "-"], ["over the link", bytes(e.link_bytes)],
    ["gate: alarms of checks", n(e.gate_alarms) + " of " + n(e.gate_checks)], ["memory of caches", bytes(e.claimed_bytes) + " of " + bytes(s.cache_bytes)]];
  $("tiles").replaceChildren(...tiles.map(([k, v]) => { const d = el("div", null, "tile"); d.append(el("b", v), el("span", k)); return d; }));
  table("models", ["name", "reuse", "senders", "publishes", "chat template", "#positions", "drift"], s.models.map(m =>
    [m.name, m.reuse, m.senders.join(", ") || "-", m.publishes ? "yes" : "no", m.chat ? "yes" : "no", n(m.max_model_len), el("td", m.drifted ? "drifted" : "no", m.drifted ? "bad" : "")]));
  const rows = [];
  s.plans.forEach(p => p.variants.forEach((v, i) => rows.push([i ? "" : p.sender + " \u2192 " + p.receiver, v.name, v.way || "-", n(v.tokens[0]) + " to " + (v.tokens[1] === null ? "any" : n(v.tokens[1])),
    n(v.loss, 2), n(v.ttft_ms, 1), i ? "" : el("td", p.gate ? p.drift : "no gate", "wide" + (p.drifted ? " bad" : ""))])));
  table("plans", ["pair", "variant", "way", "tokens", "#loss, points", "#TTFT, ms", "gate"], rows);
  $("registered").hidden = !s.registered_plans.length;
  $("registered").textContent = "Registered in the store: " + s.registered_plans.map(p => p.problem || p.sender + " \u2192 " + p.receiver +
    (p.models.length ? " (" + p.models.join(", ") + (p.models.length > 1 ? " publish" : " publishes") + " for it)" : " (no model here publishes for it)")).join("; ");
  table("recent", ["at", "model", "#prompt", "#cached", "#new", "how", "entry", "gate", "#TTFT, ms", "#predicted", "schedule"], s.recent.map(r => {
    const all = Math.max(r.duration_ms, 1e-3), bar = el("div", null, "bar"), td = el("td");
    [["q", r.queue_ms], ["f", (r.ttft_ms || 0) - r.queue_ms], ["d", r.duration_ms - (r.ttft_ms || 0)]].forEach(([c, ms]) => { const i = el("i", null, c); i.style.width = Math.max(0, 100 * ms / all) + "%"; bar.append(i); });
    bar.title = "queue " + n(r.queue_ms, 1) + " ms, first token at " + n(r.ttft_ms, 1) + " ms, last at " + n(r.duration_ms, 1) + " ms";
    td.append(bar);
    const how = el("td", r.way + (r.sender ? ", from " + r.sender : ""), "wide");
    if (r.why) how.append(el("small", r.why));
    return [new Date(r.time * 1000).toLocaleTimeString(), r.model, n(r.prompt_tokens), n(r.cached_tokens), n(r.generated_tokens), how,
      r.cache + (r.reason ? ": " + r.reason : ""), el("td", r.gate.status, r.gate.status === "alarm" ? "bad" : ""), n(r.ttft_ms, 1), n(r.predicted_ttft_ms, 1), td];
  }));
  before = s;
}
let key = "", timer = 0;  // the key is nowhere else
$("ask").onsubmit = event => { event.preventDefault(); key = $("key").value; $("key").value = ""; clearTimeout(timer); read(); };
async function read() {
  try {
    const r = await fetch("status", { cache: "no-store", headers: key ? { Authorization: "Bearer " + key } : {} });
    $("ask").hidden = r.status !== 401;
    if (r.status === 401) {
      $("state").textContent = key ? "the API key is none of this server's" : "this server asks for an API key; it is kept while this page is open";
      $("state").className = key ? "bad" : "";
      return;
    }
    if (!r.ok) throw new Error("status " + r.status);
    show(await r.json());
  } catch (e) {
    $("state").textContent = "no answer from the server: " + e.message;
    $("state").className = "bad";
  }
  timer = setTimeout(read, 2000);
}
read();
</script>
</body>
</html>
)page";
}

}  // namespace ds
